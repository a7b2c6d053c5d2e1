"""One way to check the fields of a dataclass, and one to bring it to JSON and back.

A field says what it may hold by its type and, for numbers, by its `Bounds`; what a reader finds beside that in a file,
or a user gives beside that, is an error that names the field. This file imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from modeldiff.errors import DamagedError, InputError

Record = TypeVar("Record")
_EDITED = "it was written by another version of modeldiff or edited"
_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


class Bounds(dict[str, float]):
    """Which numbers a field may hold; of a tuple, each of them: `least`, `above`, `most`, `below`. A number that is not
    finite is always out of bounds."""

    def hold(self, value: float) -> bool:
        try:
            return math.isfinite(value) and all(_BOUNDS[name][1](value, bound) for name, bound in self.items())
        except OverflowError:  # a whole number beyond floats
            return False

    def __str__(self) -> str:
        return " and ".join(f"{_BOUNDS[name][0]} {bound:g}" for name, bound in self.items()) or "finite"


def bounded(*, default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """A dataclass field with the bounds that are given by name; what else is given is its metadata."""
    bounds = Bounds({name: metadata.pop(name) for name in _BOUNDS if name in metadata})
    return dataclasses.field(default=default, metadata={"bounds": bounds, **metadata})


hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)
"""The types of a class's fields."""


def check(record: Any, name_of: Callable[[dataclasses.Field[Any]], str]) -> None:
    """Check the fields of a frozen dataclass, for its `__post_init__`; lists become tuples, and texts paths, where the
    type wants it. Raises InputError: a value has the wrong type, is no choice of its Literal, or is out of bounds;
    `name_of` says how the message calls its field."""
    for name, value in _fitted(type(record), vars(record), name_of).items():
        object.__setattr__(record, name, value)


def _fitted(cls: Any, values: Mapping[str, Any], name_of: Callable[[dataclasses.Field[Any]], str]) -> dict[str, Any]:
    return {
        field.name: fitting(values[field.name], hint, name_of(field), field.metadata.get("bounds"))
        for field, hint in _fields(cls)
    }


@functools.cache
def _fields(cls: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    """With their types. Kept, since reading hundreds of manifests asks for them thousands of times."""
    return [(field, hints(cls)[field.name]) for field in dataclasses.fields(cls)]


def fitting(value: Any, hint: Any, name: str, bounds: Bounds | None = None) -> Any:
    """The value, as the type wants it. Raises InputError: it does not fit; the message begins with `name`."""
    if hint in _TYPES:
        return _plain(value, hint, name, bounds)
    if hint in (Any, object):
        return value
    if origin := typing.get_origin(hint):
        return _COMPOUND[origin](value, hint, name, bounds)
    return value if isinstance(value, hint) else _made(hint, value, name)


def _optional(value: Any, hint: Any, name: str, bounds: Bounds | None) -> Any:
    (wanted,) = (arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    return None if value is None else fitting(value, wanted, name, bounds)


def _choice(value: Any, hint: Any, name: str, _bounds: Bounds | None) -> Any:
    if value not in (choices := typing.get_args(hint)):
        *others, last = map(str, choices)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{name} expects {listed}, found '{value}'")
    return value


def _sequence(value: Any, hint: Any, name: str, bounds: Bounds | None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(value, tuple | list):
        raise InputError(f"{name} must be a list, found {value!r}")
    if origin is list or args[-1] is ...:
        args = args[:1] * len(value)
    if len(args) != len(value):
        raise InputError(f"{name} must be {len(args)} values, found {len(value)}")
    return origin(fitting(one, arg, name, bounds) for one, arg in zip(value, args, strict=True))


def _table(value: Any, hint: Any, name: str, bounds: Bounds | None) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be a table of names and values, found {value!r}")
    _, wanted = typing.get_args(hint)
    return {key: fitting(one, wanted, f"{name}, '{key}'", bounds) for key, one in value.items()}


def _plain(value: Any, hint: Any, name: str, bounds: Bounds | None) -> Any:
    if hint is Path and isinstance(value, str):
        value = Path(value)
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name} must be {_TYPES[hint]}, found {value!r}")
    if bounds is not None and hint in (int, float) and not bounds.hold(value):
        raise InputError(f"{name} must be {bounds}, found {value}")
    return value


# By what a type is made of.
_COMPOUND: dict[Any, Callable[[Any, Any, str, Bounds | None], Any]] = {
    **dict.fromkeys((typing.Union, types.UnionType), _optional),
    **dict.fromkeys((tuple, list), _sequence),
    Literal: _choice,
    dict: _table,
}


def to_json(value: Any) -> Any:
    """A dataclass, and all that its fields hold, as JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def number_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def from_json(cls: type[Record], data: Any, where: str) -> Record:
    """The record that `to_json` wrote: every field of the class and no other. Raises DamagedError: a field is missing,
    unknown or of the wrong type; the message names it and `where` it is."""
    try:
        made: Record = _made(cls, data, where)
    except InputError as error:
        raise DamagedError(str(error)) from None
    return made


def _made(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise InputError(f"{where} must be a table of names and values, found {data!r}; {_EDITED}")
    check_fields(data, required={field.name for field, _ in _fields(cls)}, where=where)
    return cls(**_fitted(cls, data, lambda field: f"{where}: '{field.name}'"))


def check_fields(data: Mapping[str, Any], *, required: set[str], where: str) -> None:
    """Raise InputError unless `data` has exactly the `required` keys: an ignored field might have mattered."""
    missing, unknown = sorted(required - data.keys()), sorted(data.keys() - required)
    if missing or unknown:
        what = f"'{missing[0]}' is missing" if missing else f"'{unknown[0]}' is unknown"
        raise InputError(f"{where}: field {what}; {_EDITED}")
