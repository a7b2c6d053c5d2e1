"""What every stage's settings have in common: a frozen dataclass with a docstring under each field.

The docstrings are the help texts of the command line, so a setting is described in one place only. A field made
with `setting(..., result=False)` does not change the artifact (a device, a batch size that only moves memory) and
stays out of the fingerprint. This file imports nothing heavy: `modeldiff --help` reads settings without torch.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, dataclass_transform, get_type_hints

from modeldiff.errors import InputError


def setting(*, default: Any = dataclasses.MISSING, result: bool = True, variadic: bool = False) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the default value; left out means the user must give one.
        result: False when the value cannot change the artifact; then the cache ignores it.
        variadic: on the command line the option takes one or more values (`--texts a.txt b.txt`).
    """
    return dataclasses.field(default=default, metadata={"result": result, "variadic": variadic})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting, dataclasses.field))
def settings(cls: type) -> type:
    """Class decorator: a frozen, keyword-only dataclass."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class Settings:
    """Base of the settings dataclasses. Subclasses raise InputError in `__post_init__` for senseless values."""

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON data (paths as strings, tuples as lists)."""
        return {f.name: _to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def result_json(self) -> dict[str, Any]:
        """Only the fields that can change the artifact."""
        return {
            f.name: _to_json(getattr(self, f.name))
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.metadata.get("result", True)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """The settings written by `to_json`.

        Raises:
            InputError: a field is unknown or missing; the message names `where` (the file) and the field.
        """
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        check_fields(data, required=names, where=where)
        hints = get_type_hints(cls)
        values = {name: _from_json(data[name], str(hints[name])) for name in names}
        return cls(**values)


def check_fields(data: Mapping[str, Any], *, required: set[str], where: str) -> None:
    """Raise InputError unless `data` has exactly the `required` keys: an ignored field might have mattered."""
    missing = sorted(required - data.keys())
    unknown = sorted(data.keys() - required)
    if missing:
        raise InputError(
            f"{where}: field '{missing[0]}' is missing; it was written by another version of modeldiff or edited"
        )
    if unknown:
        raise InputError(
            f"{where}: field '{unknown[0]}' is unknown; it was written by another version of modeldiff or edited"
        )


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a settings class (its bases included), by field name."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is object or base is Settings:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any, hint: str) -> Any:
    if isinstance(value, list):
        return tuple(Path(item) if "Path" in hint else item for item in value)
    if isinstance(value, str) and "Path" in hint and "str" not in hint.replace("Path", ""):
        return Path(value)
    return value
