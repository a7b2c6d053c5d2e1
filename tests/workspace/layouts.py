"""What the documents say of the files of each kind: workspace/README.md, and the sections *Layout* of modules; and
whether a file is as they say.

A line of a section, by its indentation below a file or a field: names, of arrays also shape and dtype, and after two
blanks what it is.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
from safetensors.numpy import load_file

PACKAGE = Path(__file__).parents[2] / "modeldiff"
_LINE = re.compile(r"(?P<names>\S+(?:, \S+)*)(?: \((?P<shape>[^)]*)\) (?P<dtype>\S+))?(?:  +(?P<says>\S.*))?")
_FIELDS = re.compile(r"fields of `(\w+)`(?: \(([\w/]+\.py)\))?")


@dataclasses.dataclass
class Entry:
    """A file, a field or an array, and what is below it."""

    module: Path
    names: list[str]
    shape: str | None
    dtype: str | None
    says: str
    below: list[Entry] = dataclasses.field(default_factory=list)

    def fields(self) -> Iterator[tuple[str, Entry | None]]:
        """By name, with its ending: the fields of the dataclass that it speaks of, and those below."""
        for name, path in _FIELDS.findall(self.says):
            module = (PACKAGE / path if path else self.module).relative_to(PACKAGE.parent).with_suffix("")
            found = getattr(importlib.import_module(".".join(module.parts)), name)
            yield from ((field.name, None) for field in dataclasses.fields(found))
        for entry in self.below:
            yield from ((name, entry) for name in entry.names)


def files_of_kinds() -> dict[str, set[str]]:
    """By kind, the files that the list at the top of README.md names."""
    layout: dict[str, set[str]] = {}
    for line in _readme().split("```")[1].strip().splitlines():
        kind, _, names = line.partition("/1/") if line[0] != " " else (list(layout)[-1], "", line)
        layout.setdefault(kind, set()).update(names.split())
    return layout


def formats() -> dict[str, int | None]:
    """By kind, the number in the table of README.md; None: it has none of its own."""
    return {kind: int(number) if number else None for kind, number, _ in _table()}


@functools.cache
def sections() -> dict[str, dict[str, Entry]]:
    """By kind and file, with its ending, what the sections say that the table of README.md names."""
    found = {}
    for kind, _, links in [("every", "", "(artifact.py)"), *_table()]:
        modules = [(PACKAGE / "workspace" / path).resolve() for path in re.findall(r"\(([\w./]+\.py)\)", links)]
        entries = [entry for module in modules for entry in _section(module)]
        found[kind] = {name: entry for entry in entries for name in entry.names}
    return found


def _readme() -> str:
    return (PACKAGE / "workspace/README.md").read_text(encoding="utf-8")


def _table() -> list[tuple[str, ...]]:
    return re.findall(r"^\| `(\w+)` \| (\d*) ?\| (.*) \|$", _readme(), re.MULTILINE)


def _section(module: Path) -> list[Entry]:
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")), clean=False) or ""
    _, _, text = text.partition("\nLayout (normative")
    lines = itertools.dropwhile(lambda line: not line.startswith(" "), text.splitlines())
    above = [Entry(module, [], None, None, "")]
    for line in itertools.takewhile(lambda line: line.startswith(" "), lines):
        depth, off = divmod(len(line) - len(line.lstrip()), 4)
        if off or depth > len(above):
            above[-1].says += " " + line.strip()
            continue
        match = _LINE.fullmatch(line.strip())
        assert match, f"{module}: {line}"
        names = [name for one in match["names"].split(", ") for name in _expanded(one)]
        entry = Entry(module, names, match["shape"], match["dtype"], match["says"] or "")
        del above[depth:]
        above[-1].below.append(entry)
        above.append(entry)
    return above[0].below


def _expanded(name: str) -> list[str]:
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def bare(name: str) -> str:
    return name.removesuffix("?").removesuffix(".*").removesuffix("[]")


def check_names(found: set[str], written: set[str], where: str) -> None:
    """Every name that is written, but those with a ?, and no other."""
    assert found <= {bare(name) for name in written}, where
    assert found >= {bare(name) for name in written if not name.endswith("?")}, where


def check_file(path: Path, entry: Entry) -> None:
    """Hold a file to what a section says of it: names at every depth, shapes and dtypes."""
    if path.suffix == ".json":
        _check_object(json.loads(path.read_text(encoding="utf-8")), entry, str(path))
    elif path.suffix == ".jsonl":
        for line in path.read_bytes().decode("ascii").splitlines():
            _check_object(json.loads(line), entry, str(path))
    elif path.suffix in (".h5", ".safetensors"):
        arrays = read_arrays(path)
        # Of each shard there is one array of this name.
        arrays = {re.sub(r"shards/\d{5}", "shards/00000", name): array for name, array in arrays.items()}
        check_names(set(arrays), {name for name, _ in entry.fields()}, str(path))
        _check_shapes(arrays, entry, str(path))
    elif path.suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG\r\n")


def read_arrays(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    arrays = {}

    def take(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            arrays[name] = found[()]

    with h5py.File(path) as file:
        file.visititems(take)
    return arrays


def _check_object(data: Any, entry: Entry, where: str) -> None:
    fields = dict(entry.fields())
    if not fields or data is None:
        return
    assert isinstance(data, dict), where
    check_names(set(data), set(fields), where)
    for name, below in fields.items():
        value = data.get(bare(name))
        if below is None or value is None:
            continue
        if name.endswith(".*"):
            assert isinstance(value, dict), f"{where}: {name}"
        # A list also where it is one for each name.
        ones = value if isinstance(value, list) else value.values() if name.endswith(".*") else [value]
        for one in itertools.chain(*(one if isinstance(one, list) else [one] for one in ones)):
            _check_object(one, below, f"{where}: {name}")


def _check_shapes(arrays: dict[str, Any], of: Entry, where: str) -> None:
    """Sizes with the same name are equal within a file."""
    sizes: dict[str, int] = {}
    for name, entry in of.fields():
        if entry is None or (array := arrays.get(bare(name))) is None:
            continue
        assert str(array.dtype) in (entry.dtype or "").split("/"), f"{where}: {name} {array.dtype}"
        dims = [dim.strip() for dim in (entry.shape or "").split(",") if dim.strip()]
        assert len(dims) == array.ndim, f"{where}: {name} {array.shape}"
        for size, dim in zip(array.shape, dims, strict=True):
            symbol, _, more = dim.partition(" + ")
            expected = int(dim) if dim.isdigit() else sizes.setdefault(symbol, size - int(more or 0)) + int(more or 0)
            assert size == expected, f"{where}: {name} {array.shape}, {sizes}"
