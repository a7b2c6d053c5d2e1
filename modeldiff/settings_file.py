"""Settings in a file: `--config` reads it, and `modeldiff workspace show REF --config` writes it.

One file holds the settings of one command, by name (`k_start`, or as the option is written, `k-start`), in TOML or
YAML. This file imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeldiff.errors import InputError, first_line
from modeldiff.records import fitting, hints
from modeldiff.settings import RemoteCode, Settings, option_of

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def read_settings(path: Path, cls: type[Settings], *, several: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a settings class that a .toml, .yaml or .yml file gives. Raises InputError: it cannot be read, or a
    field is unknown, given twice, or does not fit; the message names file and field.

    several: fields that the file may give one value or a list of them; they come as lists.
    """
    names = {word: field for field in dataclasses.fields(cls) for word in (field.name, option_of(field)[2:])}
    found: dict[str, Any] = {}
    for key, value in _parsed(path).items():
        field = names.get(key)
        if field is None or field.name in found:
            problem = "unknown to this command" if field is None else "there twice"
            raise InputError(f"{path}: field '{key}' is {problem}")
        hint, bounds = hints(cls)[field.name], field.metadata["bounds"]
        if field.name in several:
            listed = value if isinstance(value, list) else [value]
            found[field.name] = [fitting(one, hint, f"{path}: '{key}'", bounds) for one in listed]
        else:
            found[field.name] = fitting(value, hint, f"{path}: '{key}'", bounds)
    return found


def settings_of(artifact: Artifact, cls: type[Settings]) -> dict[str, Any]:
    """The settings, as JSON data, with which a command makes an artifact again: those in its manifest, the artifacts
    that it was made from by their references, whatever is the latest now. That code of models may be run is not among
    them: a manifest allows nothing. Raises InputError: the command has other settings."""
    known, given = {field.name for field in dataclasses.fields(cls)}, artifact.settings
    if unknown := sorted(given.keys() - known):
        raise InputError(f"{artifact.ref} was made in another way: no command has its setting '{unknown[0]}'")
    inputs = artifact.manifest.inputs
    found: dict[str, Any] = {}
    for name, value in given.items():
        one = inputs.get(name)
        several = [other.label for other in inputs.values() if other.label.startswith(f"{name.removesuffix('s')}:")]
        if one is not None and one.label.startswith(f"{name}:"):
            found[name] = one.label
        elif value is not None and name not in _fields_of(RemoteCode):
            found[name] = several if isinstance(value, list) and several else value
    return found


def to_toml(values: Mapping[str, Any]) -> list[str]:
    """Texts, numbers, truth values and lists of them as lines of TOML, of printable characters alone."""
    return [f"{name} = {_written(value)}" for name, value in values.items()]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    # JSON's numbers and escapes are TOML's too; what does not print is escaped in a way that JSON has not.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in text)


def _fields_of(cls: type[Settings]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _parsed(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".yaml", ".yml"):
        raise InputError(f"{path} has the suffix '{path.suffix}': expected .toml, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if suffix == ".toml" else _yaml(text)
    except (ValueError, RecursionError) as error:  # tomllib's and Unicode's errors are such
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{path} must hold names and values, like `k: 64`")
    return data


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"field '{name}' is there twice")
            return super().construct_mapping(node, deep)

    # 1e-3 is a number, as in YAML 1.2; to this library it is a text, for want of a point.
    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
