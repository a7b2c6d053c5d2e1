"""The workspace: a folder of artifacts, by kind and version. Finding, listing and removing them."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from modeldiff.errors import DamagedError, InputError, ModeldiffError
from modeldiff.records import from_json, to_json
from modeldiff.workspace.artifact import Artifact, Input, Manifest, check_format
from modeldiff.workspace.files import (
    TEMPORARY_SUFFIX,
    fsync_folder,
    locked,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)

# The commands that make the artifacts of stages; those of measures of features are called like their kind.
_COMMANDS = {
    "activations": "harvest",
    "crosscoder": "train",
    "features": "features",
    "continuations": "contrast",
    "contrast": "contrast",
    "steering": "steer",
    "transfer": "steer transfer",
    "report": "report",
    "toy": "toy",
}
WORKSPACE_FILE = "workspace.json"
# Of workspace.json, raised with that of manifests and of unfinished work: who cannot read those should not try.
FORMAT = 3
PARTIAL = ".partial"
_DIGESTS = "digests.json"
_LATEST = "latest"


@dataclass(frozen=True)
class _Head:
    """What workspace.json holds."""

    format: int
    versions: dict[str, int]
    """By kind, the newest number that was given out."""


@dataclass(frozen=True)
class _Remembered:
    """What digests.json holds: those of input files, and one of all of them."""

    known: dict[str, str]
    check: str


def check_name(name: str | None) -> None:
    """Raise InputError unless an artifact with this name could be found by it, or it is None."""
    if name is None:
        return
    what = {
        "is empty": not name.strip(),
        "would be a version": name.isdigit(),
        "means the newest version": name == _LATEST,
        "has a colon, which stands between kind and version": ":" in name,
        "has characters that do not print": not name.isprintable(),
    }
    for problem in (problem for problem, found in what.items() if found):
        raise InputError(f"--name {name!r} {problem}: give a word, like `--name first-try`")


class Workspace:
    """A folder of artifacts (default: `MODELDIFF_WORKSPACE` if set, else ./modeldiff-workspace), made on first write;
    opening one that does not exist is not an error. Raises InputError: the folder is not a workspace, or one of a newer
    format; DamagedError: workspace.json cannot be read."""

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder or os.environ.get("MODELDIFF_WORKSPACE") or "modeldiff-workspace")
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder: choose another place with --workspace")
        if (self.folder / WORKSPACE_FILE).exists():
            self._head()
        # The lock, and a temporary file, are there while another process makes the workspace.
        elif any(e.name != PARTIAL and not e.name.startswith(WORKSPACE_FILE) for e in self.folder.iterdir()):
            raise InputError(
                f"{self.folder} holds files but no {WORKSPACE_FILE}: choose an empty folder with --workspace"
            )

    def create(self) -> None:
        (self.folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        with self.lock():
            if not (self.folder / WORKSPACE_FILE).exists():
                write_json(self.folder / WORKSPACE_FILE, to_json(_Head(FORMAT, {})))

    def _head(self) -> _Head:
        path = self.folder / WORKSPACE_FILE
        try:
            data = read_json(path)
            check_format(data, path, FORMAT)
            return from_json(_Head, data, str(path))
        except DamagedError as error:
            mended = f'{{"format": {FORMAT}, "versions": {{}}}}'
            raise DamagedError(f"{error}; write {mended} into it, and nothing but version numbers is lost") from None

    def lock(self) -> AbstractContextManager[None]:
        """Held for the moment of publishing or removing."""
        return locked(self.folder / f"{WORKSPACE_FILE}.lock")

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Every published artifact whose manifest can be read, oldest first within a kind."""
        return self.survey(kind)[0]

    def survey(self, kind: str | None = None) -> tuple[list[Artifact], list[tuple[Path, str]]]:
        """(`artifacts`; the folders that cannot be read, or their manifest, with the reason), each manifest read once:
        that of a large harvest names thousands of files."""
        found: list[Artifact] = []
        damaged: list[tuple[Path, str]] = []
        for one in (kind,) if kind else self.kinds():
            try:
                folders = self._folders(one)
            except OSError as error:
                damaged.append((self.folder / one, f"cannot be read ({error.strerror})"))
                continue
            for folder in folders:
                try:
                    found.append(Artifact(folder, Manifest.read(folder)))
                except ModeldiffError as error:
                    damaged.append((folder, str(error)))
        return found, damaged

    def find(self, kind: str, ref: str | int | None = None) -> Artifact:
        """The artifact of `kind`, e.g. `crosscoder`, that `ref` means: None or `latest` (the newest version), a version
        (`2`), `crosscoder:2`, or a name given with `--name`. Raises InputError: there is none; the message says which
        exist and which command makes one."""
        wanted = str(ref) if ref is not None else _LATEST
        prefix, _, rest = wanted.rpartition(":")
        if prefix and prefix != kind:
            raise InputError(f"'{wanted}' is not of the kind '{kind}' that is needed here")
        folders = self._folders(kind)
        if not folders:
            raise InputError(
                f"no {kind} in {self.folder}: run `{command_of(kind)}` first, or choose another --workspace"
            )
        for folder in folders:
            if folder.name == (folders[-1].name if rest == _LATEST else rest):
                return Artifact(folder, Manifest.read(folder))
        if artifact := self._named(rest, kind):
            return artifact
        known = ", ".join(f"{kind}:{folder.name}" for folder in folders[-5:])
        raise InputError(
            f"no {kind} called '{wanted}' in {self.folder}: there is {known} (see `modeldiff workspace list`)"
        )

    def resolve(self, ref: str) -> Artifact:
        """The artifact that a full reference (`kind:version`, `kind:name` or a bare name) means."""
        kind, _, rest = ref.rpartition(":")
        if kind in (*_COMMANDS, *self.kinds()):
            return self.find(kind, rest)
        if artifact := self._named(ref):
            return artifact
        raise InputError(
            f"no artifact '{ref}' in {self.folder}: expected a reference like `crosscoder:1` "
            "(see `modeldiff workspace list`)"
        )

    def _named(self, name: str, kind: str | None = None) -> Artifact | None:
        """The newest artifact with this name."""
        return next((one for one in reversed(self.artifacts(kind)) if one.manifest.name == name), None)

    def users_of(self, artifact: Artifact) -> list[Artifact]:
        return [one for one in self.artifacts() if artifact.as_input() in one.manifest.inputs.values()]

    def source_of(self, artifact: Artifact, kind: str) -> Artifact:
        """The artifact of `kind` that this one was made from, known by its digest. Raises InputError: it is not in the
        workspace any more."""
        (made_from,) = (one for one in artifact.manifest.inputs.values() if one.label.startswith(f"{kind}:"))
        for candidate in reversed(self.artifacts(kind)):
            if candidate.manifest.digest == made_from.digest:
                return candidate
        raise InputError(
            f"{artifact.ref} was made from {made_from.label}, which is not in {self.folder} any more: "
            f"run `{command_of(kind)}` again, or name another with --{kind}"
        )

    def present(self, kind: str, wanted: Input | None) -> Artifact | None:
        """The artifact that an input was, known by its digest: the one it was called, if that is still there."""
        found = [one for one in self.artifacts(kind) if wanted and one.manifest.digest == wanted.digest]
        return next((one for one in found if wanted and one.ref == wanted.label), found[-1] if found else None)

    def remove(self, folder: Path) -> None:
        """Delete a published artifact. Its version number is not given out again."""
        with self.lock():
            grave = self.folder / PARTIAL / f"removed-{folder.parent.name}-{folder.name}-{os.getpid()}"
            folder.rename(grave)  # one rename: a crash leaves it whole or gone
            fsync_folder(folder.parent)
            shutil.rmtree(grave)

    def next_version(self, kind: str) -> int:
        """Count up and record the version of `kind`. The caller holds the lock."""
        versions = self._head().versions
        versions[kind] = 1 + max([versions.get(kind, 0), *(int(folder.name) for folder in self._folders(kind))])
        write_json(self.folder / WORKSPACE_FILE, to_json(_Head(FORMAT, versions)))
        return versions[kind]

    def place(self, folder: Path, manifest: Manifest) -> Artifact:
        """Publish a finished folder, which has this manifest: one rename. The caller holds the lock."""
        target = self.folder / manifest.kind / str(manifest.version)
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
        fsync_folder(target.parent)
        return Artifact(target, manifest)

    def kinds(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        entries = {entry.name for entry in self.folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        return [kind for kind in _COMMANDS if kind in entries] + sorted(entries - _COMMANDS.keys())

    def partials(self) -> list[Path]:
        """Folders of unfinished work and remains of removed artifacts."""
        folder = self.folder / PARTIAL
        return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.exists() else []

    def leftovers(self) -> list[Path]:
        """Temporary files of processes that were killed. The caller holds the lock."""
        folders = ((self.folder, WORKSPACE_FILE), (self.folder / PARTIAL, _DIGESTS))
        return [path for folder, name in folders for path in folder.glob(f"{name}.*{TEMPORARY_SUFFIX}")]

    @property
    def toy_cells(self) -> Path:
        """Finished cells of toy benchmarks, shared by all of them: a cache, not an artifact."""
        return self.folder / "toy" / ".cells"

    @property
    def judge_answers(self) -> Path:
        """Where answers of judges are kept, for all commands: they may have cost money."""
        return self.folder / ".judge"

    def digest_of(self, path: Path) -> str:
        """SHA-256 of an input file, remembered by path, size, and nanosecond times of change of its content and of what
        is known about it: large files are not read again each time."""
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        remembered = self.folder / PARTIAL / _DIGESTS
        known: dict[str, str] = {}
        with suppress(DamagedError):  # not there yet, or torn: only a cache
            found = from_json(_Remembered, read_json(remembered), str(remembered))
            if found.check == sha256_json(found.known):
                known = found.known
        if key not in known:
            known[key] = sha256_file(path)
            with suppress(OSError):  # a workspace that may only be read answers all the same
                remembered.parent.mkdir(parents=True, exist_ok=True)
                write_json(remembered, to_json(_Remembered(known, sha256_json(known))))
        return known[key]

    def _folders(self, kind: str) -> list[Path]:
        folder = self.folder / kind
        versions = [entry for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []
        return sorted(versions, key=lambda entry: int(entry.name))


def command_of(kind: str) -> str:
    """The command that makes artifacts of a kind."""
    return f"modeldiff {_COMMANDS.get(kind, f'features {kind}')}"
