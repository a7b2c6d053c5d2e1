"""manifest.json: what an artifact is, from what it was made, with which settings, and the digest of each file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from modeldiff.errors import DamagedError, InputError
from modeldiff.records import from_json
from modeldiff.workspace.digest import ALGORITHMS, joined, parted
from modeldiff.workspace.files import read_json, sha256_json, write_json

# Counted up when a reader of the one before would misread it. 1: every digest is SHA-256, and none other is understood.
FORMAT = 2
MANIFEST_NAME = "manifest.json"
# Files below this folder hold timings: digested, but not part of what the artifact *is*.
LOGS_PREFIX = "logs/"


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size in bytes and digest of one file of an artifact."""

    size: int
    digest: str
    """See digest.py."""

    def to_json(self) -> dict[str, Any]:
        """{"size": ..., the algorithm's name: hex}."""
        algorithm, hexadecimal = parted(self.digest)
        return {"size": self.size, algorithm: hexadecimal}

    @classmethod
    def from_json(cls, data: Any, where: str) -> FileEntry:
        """What `to_json` gave.

        Raises:
            DamagedError: it is not a size and one digest by an algorithm that is known.
        """
        if isinstance(data, dict) and len(data) == 2 and isinstance(data.get("size"), int):
            for algorithm in ALGORITHMS:
                if isinstance(data.get(algorithm), str) and data[algorithm].isalnum():
                    return cls(data["size"], joined(algorithm, data[algorithm]))
        found = ", ".join(map(repr, data)) if isinstance(data, dict) else type(data).__name__
        raise DamagedError(
            f"{where}: expected 'size' and a digest by {' or '.join(ALGORITHMS)}, found {found or 'nothing'}; it was "
            "written by another version of modeldiff or edited"
        )


@dataclasses.dataclass(frozen=True)
class Input:
    """Something an artifact was made from: another artifact, a model, a text file."""

    label: str
    """How people call it, e.g. `activations:2` or a path."""
    digest: str
    """What it is: a SHA-256, or the commit of a hub repository."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; every field is written, none may be missing or unknown on read."""

    format: int
    kind: str
    version: int
    name: str | None
    created: str
    settings: dict[str, Any]
    inputs: dict[str, Input]
    fingerprint: str
    files: dict[str, FileEntry]
    metrics: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    peak_memory_bytes: int

    @property
    def ref(self) -> str:
        """`kind:version`, how commands name this artifact."""
        return f"{self.kind}:{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 over the names and digests of the files (timing logs left out): equal content, equal digest."""
        content = {name: entry.digest for name, entry in self.files.items() if not name.startswith(LOGS_PREFIX)}
        return sha256_json([self.kind, content])

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`, atomically."""
        files = {name: entry.to_json() for name, entry in self.files.items()}
        write_json(folder / MANIFEST_NAME, {**dataclasses.asdict(self), "files": files})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check manifest.json of `folder`.

        Raises:
            DamagedError: missing, not JSON, or with fields that are missing or unknown (named).
            InputError: written by a newer modeldiff.
        """
        path = folder / MANIFEST_NAME
        data = read_json(path)
        check_format(data, path, FORMAT)
        if isinstance(data.get("files"), dict):
            where = f"{path}, 'files'"
            data["files"] = {name: FileEntry.from_json(entry, where) for name, entry in data["files"].items()}
        return from_json(cls, data, str(path))


def check_format(data: dict[str, Any], path: Path, newest: int) -> None:
    """Raise unless `data['format']` is one this version reads: at most `newest`."""
    found = data.get("format")
    if not isinstance(found, int):
        raise DamagedError(f"{path}: field 'format' is missing or not a number")
    if found > newest:
        raise InputError(
            f"{path}: format {found} is newer than this modeldiff reads ({newest}): upgrade modeldiff, "
            "or choose another place with --workspace"
        )
