"""A published artifact: a folder that never changes, with a manifest that says what it is, from what and how it was
made, and the digest of each file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeldiff.errors import DamagedError, InputError
from modeldiff.records import from_json, to_json
from modeldiff.workspace.files import blake3_file, read_json, sha256_json, write_json

# Raised when a reader of the one before would misread it. 1 had SHA-256 digests.
FORMAT = 2
MANIFEST_NAME = "manifest.json"
# Files below this folder hold timings: digested, but not part of what the artifact *is*.
LOGS_PREFIX = "logs/"
# Digests of smaller files are checked on every read (a few tens of milliseconds); larger ones by `workspace verify`.
CHEAP_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class FileEntry:
    size: int
    blake3: str


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
    def digest(self) -> str:
        """SHA-256 over the names and digests of the files (timing logs left out): equal content, equal digest."""
        content = {name: f"blake3:{one.blake3}" for name, one in self.files.items() if not name.startswith(LOGS_PREFIX)}
        return sha256_json([self.kind, content])

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST_NAME, to_json(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check manifest.json of `folder`. Raises DamagedError: missing, not JSON, or with fields that are
        missing or unknown (named); InputError: written by a newer modeldiff."""
        path = folder / MANIFEST_NAME
        data = read_json(path)
        check_format(data, path, FORMAT)
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


class Artifact:
    """One version of one kind, on disk: its folder and its manifest, which was checked on reading."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def ref(self) -> str:
        """`kind:version`, how commands name this artifact."""
        return f"{self.manifest.kind}:{self.manifest.version}"

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest.settings

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest.metrics

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.manifest.files.values())

    @property
    def mend(self) -> str:
        """What a user does about a damaged artifact."""
        return f"run `modeldiff workspace remove {self.ref} --force` and the command that made it again"

    def as_input(self) -> Input:
        return Input(label=self.ref, digest=self.manifest.digest)

    def file(self, name: str) -> Path:
        """Path of one of the artifact's files, after a cheap check: it is listed, present, of the right size, and, when
        it is small, has the right digest. Raises DamagedError: naming the file and the mend."""
        problem = self._problem(name, deep=False)
        if problem:
            raise DamagedError(f"{self.folder / name}: {problem}; {self.mend}")
        return self.folder / name

    def files(self, prefix: str = "") -> list[str]:
        """Names of the artifact's files, sorted, that begin as asked."""
        return sorted(name for name in self.manifest.files if name.startswith(prefix))

    def problems(self, *, deep: bool = True, report: Callable[[int], None] | None = None) -> list[str]:
        """What is wrong with the files, one line each; empty when the artifact is sound. deep: read every byte and
        compare digests, not only those of small files; report: called with the number of bytes after each file."""
        found = []
        for name, entry in sorted(self.manifest.files.items()):
            problem = self._problem(name, deep=deep)
            if problem:
                found.append(f"{name}: {problem}")
            if report:
                report(entry.size)
        return found

    def _problem(self, name: str, *, deep: bool) -> str | None:
        entry = self.manifest.files.get(name)
        if entry is None:
            return f"is not part of {self.ref}"
        path = self.folder / name
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != entry.size:
            return f"is damaged: {entry.size} bytes expected, {size} found"
        if (deep or size <= CHEAP_BYTES) and blake3_file(path) != entry.blake3:
            return "is damaged: its content is not what was written (digest differs)"
        return None
