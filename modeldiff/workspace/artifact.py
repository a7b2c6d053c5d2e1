"""A published artifact: a folder that never changes, with a manifest that says what it is, from what and how it was
made, and the digest of each file.

Layout (normative):
    manifest.json    fields of `Manifest`, in this order, and last
        check        SHA-256 (hex) of the file as it is without this field: cut from the comma before it to the end of
                     its value
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from modeldiff.errors import DamagedError, InputError
from modeldiff.records import bounded, from_json, to_json
from modeldiff.workspace.files import blake3_file, json_bytes, read_json, sha256_json, write_bytes

# Raised when a reader of the one before would misread it. 1 had SHA-256 digests, 2 no digest of the manifest itself.
FORMAT = 3
MANIFEST_NAME = "manifest.json"
# Files below this folder hold timings: digested, but not part of what the artifact *is*.
LOGS_PREFIX = "logs/"
# Smaller files are read to answer from the cache (a few tens of milliseconds); larger ones when they are used.
CHEAP_BYTES = 64 << 20
_CHECK = "check"
_BEFORE_CHECK, _END = f',\n  "{_CHECK}": '.encode(), b"\n}\n"
_checked = set[tuple[Path, int, int, str]]()
"""Files that this process has found to be what was written: path, size, nanosecond time of change, digest."""


@dataclasses.dataclass(frozen=True)
class FileEntry:
    size: int = bounded(least=0)
    """Bytes."""
    blake3: str = bounded()
    """Hex digest of the content."""


@dataclasses.dataclass(frozen=True)
class Input:
    """Something an artifact was made from: another artifact, a model, a text file."""

    label: str
    """How people call it, e.g. `activations:2` or a path."""
    digest: str
    """What it is: of an artifact `Manifest.digest`, else a SHA-256, or the commit of a hub repository."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json but `check`; every field is written, none may be missing or unknown on read."""

    format: int
    """FORMAT."""
    kind: str
    """With `version` the folder, `kind/version`, and the name `kind:version` of the artifact."""
    version: int
    name: str | None
    """By which it can be found, too (`--name`)."""
    created: str
    """When it was published, ISO 8601 in UTC, to the second."""
    settings: dict[str, Any]
    """Every setting of the command, by name; `modeldiff COMMAND --help` explains them."""
    inputs: dict[str, Input]
    """By what they served as."""
    fingerprint: str
    """SHA-256 by which the same work is known again (`Order.fingerprint`)."""
    files: dict[str, FileEntry]
    """By path below the folder, with "/": every file of the artifact but manifest.json."""
    metrics: dict[str, Any]
    """A few figures for lists of artifacts, by name, as the stage chooses; the whole result is in the other files."""
    environment: dict[str, Any]
    """`python`, `platform`, `packages` (versions by name), `commit` (of the checkout, or null); `resolved` (what
    settings left open and decides the result); of most stages `device` and `dtype`."""
    seconds: float = bounded(least=0)
    """Of the run that published it; what an interrupted one did before is not counted."""
    peak_memory_bytes: int
    """Of that process, resident."""

    @property
    def digest(self) -> str:
        """What later artifacts call this one by: equal content, equal digest. SHA-256 of the JSON (sorted keys, no
        spaces, ASCII) of [kind, {name: "blake3:" + digest}] of the files but those below logs/."""
        content = {name: f"blake3:{one.blake3}" for name, one in self.files.items() if not name.startswith(LOGS_PREFIX)}
        return sha256_json([self.kind, content])

    def write(self, folder: Path) -> None:
        write_bytes(folder / MANIFEST_NAME, _with_check(json_bytes(to_json(self))))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check manifest.json of `folder`. Raises DamagedError: missing, not JSON, with fields that are
        missing or unknown (named), not what was written, or that of another folder; InputError: written by another
        version of modeldiff."""
        path = folder / MANIFEST_NAME
        data = read_json(path)
        check_format(data, path, FORMAT)
        data.pop(_CHECK, None)
        made = from_json(cls, data, str(path))
        content = path.read_bytes()
        if content != _with_check(content.rpartition(_BEFORE_CHECK)[0] + _END):
            raise DamagedError(f"{path}: is damaged: its content is not what was written (digest differs)")
        if [made.kind, str(made.version)] != [folder.parent.name, folder.name]:
            raise DamagedError(
                f"{folder} holds {made.kind}:{made.version}, which belongs into {made.kind}/{made.version}: "
                "rename it back"
            )
        return made


def _with_check(content: bytes) -> bytes:
    """A manifest with its own digest as the last field."""
    check = json.dumps(hashlib.sha256(content).hexdigest())
    return content.removesuffix(_END) + _BEFORE_CHECK + check.encode() + _END


def check_format(data: dict[str, Any], path: Path, ours: int) -> None:
    """Raise unless `data['format']` is the one that this version reads."""
    found = data.get("format")
    if not isinstance(found, int) or isinstance(found, bool):
        raise DamagedError(f"{path}: field 'format' is missing or not a number")
    if found != ours:
        age, mend = ("newer", "upgrade modeldiff") if found > ours else ("older", "use the modeldiff that made it")
        raise InputError(
            f"{path}: format {found} is {age} than this modeldiff reads ({ours}): {mend}, "
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

    def file(self, name: str, *, read: bool = True) -> Path:
        """Path of one of the artifact's files, after a check: it is listed, present, and its content is what was
        written. A process reads it once for this; not at all without `read`, for who checks what he reads himself.
        Raises DamagedError: naming the file and the mend."""
        problem = self._problem(name, "once" if read else "never")
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
            problem = self._problem(name, "again" if deep else "small")
            if problem:
                found.append(f"{name}: {problem}")
            if report:
                report(entry.size)
        return found

    def _problem(self, name: str, read: Literal["never", "small", "once", "again"]) -> str | None:
        """read: whether to compare the content; but for "again", files that this process has read are not read."""
        entry = self.manifest.files.get(name)
        if entry is None:
            return f"is not part of {self.ref}"
        path = self.folder / name
        try:
            if not path.is_file():
                return "is missing"
            found = path.stat()
            if found.st_size != entry.size:
                return f"is damaged: {entry.size} bytes expected, {found.st_size} found"
            if read == "never" or (read == "small" and entry.size > CHEAP_BYTES):
                return None
            known = (path, found.st_size, found.st_mtime_ns, entry.blake3)
            if (read == "again" or known not in _checked) and blake3_file(path) != entry.blake3:
                return "is damaged: its content is not what was written (digest differs)"
        except (OSError, ValueError) as error:  # no file can have some names
            return f"cannot be read ({getattr(error, 'strerror', None) or error})"
        _checked.add(known)
        return None
