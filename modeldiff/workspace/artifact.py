"""A published artifact: a folder that never changes, with its manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeldiff.errors import DamagedError
from modeldiff.workspace.digest import has_digest
from modeldiff.workspace.files import CHEAP_BYTES
from modeldiff.workspace.manifest import Input, Manifest


class Artifact:
    """One version of one kind, on disk.

    Attributes:
        folder: where its files are.
        manifest: its manifest, checked on reading.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"Artifact({self.ref!r}, {str(self.folder)!r})"

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def ref(self) -> str:
        """`kind:version`."""
        return self.manifest.ref

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest.settings

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest.metrics

    def as_input(self) -> Input:
        """This artifact as an input of another one."""
        return Input(label=self.ref, digest=self.manifest.digest)

    def file(self, name: str) -> Path:
        """Path of one of the artifact's files, after a cheap check: it is listed, present, of the right size, and,
        when it is small, has the right digest.

        Raises:
            DamagedError: naming the file and the mend.
        """
        problem = self._problem(name, deep=False)
        if problem:
            raise DamagedError(f"{self.folder / name}: {problem}; {self.mend}")
        return self.folder / name

    @property
    def mend(self) -> str:
        """What a user does about a damaged artifact."""
        return f"run `modeldiff workspace remove {self.ref} --force` and the command that made it again"

    def files(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Names of the artifact's files, sorted, that begin and end as asked."""
        return sorted(n for n in self.manifest.files if n.startswith(prefix) and n.endswith(suffix))

    def problems(self, *, deep: bool = True, report: Callable[[int], None] | None = None) -> list[str]:
        """What is wrong with the files, one line each; empty when the artifact is sound.

        Args:
            deep: read every byte and compare digests; otherwise only presence, size and the digests of small files.
            report: called with the number of bytes after each file.
        """
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
        if (deep or size <= CHEAP_BYTES) and not has_digest(path, entry.digest):
            return "is damaged: its content is not what was written (digest differs)"
        return None
