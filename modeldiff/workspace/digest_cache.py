"""Digests of input files, remembered by path, size and time of change: large ones are not read again each time."""

from __future__ import annotations

from pathlib import Path

from modeldiff.errors import DamagedError
from modeldiff.workspace.files import read_json, sha256_file, write_json
from modeldiff.workspace.workspace import PARTIAL, Workspace


class DigestCache:
    """Calling it with a path gives the file's SHA-256.

    A file that was changed within the same clock tick and kept its size would be taken for unchanged; the nanosecond
    time of change makes that unlikely.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.folder / PARTIAL / "digests.json"
        try:
            self._known = read_json(self._path) if self._path.exists() else {}
        except DamagedError:
            self._known = {}  # only a cache: made anew

    def __call__(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if not isinstance(self._known.get(key), str):
            self._known[key] = sha256_file(path)
            write_json(self._path, self._known)
        return str(self._known[key])
