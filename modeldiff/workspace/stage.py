"""Producing an artifact: answer from the cache, or say why it runs, continue what was begun, publish atomically."""

from __future__ import annotations

import ctypes
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from modeldiff import __version__
from modeldiff.console import say
from modeldiff.errors import DamagedError, MachineError
from modeldiff.settings import Settings
from modeldiff.workspace import files, kept
from modeldiff.workspace.artifact import FORMAT, LOGS_PREFIX, MANIFEST_NAME, Artifact, FileEntry, Input, Manifest
from modeldiff.workspace.workspace import PARTIAL, Workspace, check_name

_PACKAGES = ("torch", "transformers", "tokenizers", "h5py", "numpy", "safetensors")
# Files of this subfolder serve to continue after an interruption; they are dropped when the artifact is published.
RESUME = "resume"
# Writing checkpoints may take this share of the time.
_WRITING_SHARE = 0.05


class Work:
    """The folder of an artifact in the making. What a stage commits here survives a kill: the same command finds it.
    folder: write files here, through `commit`, `write_json` or `write_bytes` only; resume: checkpoints and the like, by
    the functions of kept.py, dropped when the artifact is published; environment: facts to add to the manifest (device,
    dtype); rank: which process of a run this is (see ranks.py). Several may work in one folder, on different files;
    rank 0 opens it first, and checks what an earlier run has left."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.rank = rank
        self.resume = folder / RESUME
        self._digests = self.resume / "digests"
        self.resume.mkdir(parents=True, exist_ok=True)
        self.environment: dict[str, Any] = {}
        self._unchecked: set[str] = set()
        if not rank:
            for leftover in folder.rglob(f"*{files.TEMPORARY_SUFFIX}"):
                leftover.unlink()
            for log in folder.glob(f"{LOGS_PREFIX}*.jsonl"):  # a kill may have torn the last line
                os.truncate(log, log.read_bytes().rfind(b"\n") + 1)
            found = self._digests.rglob(f"*{kept.SUFFIX}")
            self._unchecked = {str(path.relative_to(self._digests))[: -len(kept.SUFFIX)] for path in found}

    def temporary(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return files.temporary_path(path)

    def commit(self, temporary: Path, name: str) -> None:
        """Take the finished file `temporary` (made with `temporary(name)`) as `name`, durably; keep its digest."""
        kept.keep(temporary, self.folder / name, self._digest(name))
        self._unchecked.discard(name)

    def write_bytes(self, name: str, content: bytes) -> None:
        temporary = self.temporary(name)
        temporary.write_bytes(content)
        self.commit(temporary, name)

    def write_json(self, name: str, data: Any) -> None:
        self.write_bytes(name, files.json_bytes(data))

    def has(self, name: str) -> bool:
        """True when `name` was committed, by any process of this run or one before it. What one before it has left is
        read, once, and dropped if it is not what was committed."""
        if name in self._unchecked:
            self._unchecked.discard(name)
            return kept.is_sound(self.folder / name, self._digest(name))
        return (self.folder / name).exists() and kept.newest(self._digest(name)) is not None

    def entries(self) -> dict[str, FileEntry]:
        """Size and digest of each file. Raises DamagedError: one that an earlier run has left is damaged."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or name == MANIFEST_NAME or name.startswith(f"{RESUME}/"):
                continue
            if name in self._unchecked and not self.has(name):
                raise DamagedError(f"{path} was damaged: the same command makes it again")
            found[name] = kept.newest(self._digest(name)) or FileEntry(path.stat().st_size, files.blake3_file(path))
        return found

    def _digest(self, name: str) -> Path:
        """Where the digest of a committed file is kept until the artifact is published."""
        return self._digests / f"{name}{kept.SUFFIX}"


Build = Callable[[Work], dict[str, Any]]
"""Does the work and returns the metrics for the manifest. It must continue from what the `Work` already holds, and
write the same bytes however often it was interrupted."""


class CheckpointClock:
    """When the next checkpoint is due: after some seconds, or later when writing one takes long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last, self._cost = time.monotonic(), 0.0

    def now(self) -> bool:
        return time.monotonic() - self._last >= max(self._seconds, self._cost / _WRITING_SHARE)

    @contextmanager
    def writing(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - start


@dataclasses.dataclass(frozen=True)
class Order:
    """What to produce: kind, settings, what it is made from, and the version of the code's file format and method."""

    kind: str
    settings: Settings
    inputs: Mapping[str, Input]
    schema: int
    """Raised by one when the same settings and inputs would give other results than before."""
    resolved: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `auto` settings became on this machine (a layer, a dtype), where it changes the result."""

    @property
    def fingerprint(self) -> str:
        digests = {name: one.digest for name, one in self.inputs.items()}
        return files.sha256_json([self.kind, self.schema, self.settings.result_json(), dict(self.resolved), digests])


def produce(
    workspace: Workspace, order: Order, build: Build, *, name: str | None = None, force: bool = False
) -> Artifact:
    """The artifact that `order` describes, labelled `name`, from the cache or (also when the cache has it: `force`) by
    running `build`. Nothing is written before the cache was read. Raises InputError: a name that could not be found
    again; MachineError: another process is producing the same artifact, or the file system has no locks."""
    check_name(name)
    cached, why = _from_cache(workspace, order)
    if cached and not force:
        return cached
    workspace.create()
    partial = workspace.folder / PARTIAL / order.fingerprint[:32]
    with ExitStack() as held:
        try:
            held.enter_context(files.locked(partial.with_suffix(".lock"), wait=False))
        except BlockingIOError:
            raise MachineError(
                f"another process is already making this {order.kind} in {workspace.folder}: wait for it, or stop it"
            ) from None
        if not force:  # it may have been published while we were looking
            cached, why = _from_cache(workspace, order)
            if cached:
                return cached
        begun = ", continuing what was begun" if (partial / RESUME).exists() else ""
        say(f"{order.kind}: {'forced' if cached else why or _changes(workspace, order)}{begun}")
        return _run(workspace, order, partial, build, name)


def _from_cache(workspace: Workspace, order: Order) -> tuple[Artifact | None, str | None]:
    """A sound artifact with this fingerprint; else what is wrong with the newest one that has it."""
    corrupt = None
    for artifact in reversed(workspace.artifacts(order.kind)):
        if artifact.manifest.fingerprint == order.fingerprint:
            problems = artifact.problems(deep=False)
            if not problems:
                say(f"{artifact.ref} is up to date")
                return artifact, None
            corrupt = corrupt or f"{artifact.ref} is corrupt ({problems[0]})"
    return None, corrupt


def _changes(workspace: Workspace, order: Order) -> str:
    """Why there is no cached artifact: `new`, or what differs from the newest one of the kind."""
    existing = workspace.artifacts(order.kind)
    if not existing:
        return "new"
    last = existing[-1].manifest
    changes = [
        f"{key} changed {_short(last.settings.get(key))} -> {_short(value)}"
        for key, value in order.settings.result_json().items()
        if last.settings.get(key) != value
    ]
    for key, one in order.inputs.items():
        before = last.inputs.get(key, Input("none", ""))
        if before.digest != one.digest:
            changes.append(f"input {key} changed ({before.label} -> {one.label})")
    resolved = last.environment.get("resolved", {})
    changes += [
        f"{key} is now {_short(value)} (was {_short(resolved.get(key))})"
        for key, value in order.resolved.items()
        if resolved.get(key) != value
    ]
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    return f"{shown or 'modeldiff itself changed'} (against {existing[-1].ref})"


def _short(value: Any) -> str:
    text = "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _run(workspace: Workspace, order: Order, partial: Path, build: Build, name: str | None) -> Artifact:
    work = Work(partial)
    (partial / MANIFEST_NAME).unlink(missing_ok=True)  # left by a kill between manifest and rename: publish anew
    _forget_peak_memory()
    started = time.monotonic()
    metrics = build(work)
    seconds, entries = time.monotonic() - started, work.entries()
    with workspace.lock():
        version = workspace.next_version(order.kind)
        manifest = Manifest(
            format=FORMAT,
            kind=order.kind,
            version=version,
            name=name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            settings=order.settings.to_json(),
            inputs=dict(order.inputs),
            fingerprint=order.fingerprint,
            files=entries,
            metrics=metrics,
            environment={**environment(), **work.environment, "resolved": dict(order.resolved)},
            seconds=round(seconds, 3),
            peak_memory_bytes=peak_memory_bytes(),
        )
        manifest.write(partial)
        # Moved aside first: a kill in the middle must not leave a part of it, which would pass for the whole.
        dropped = partial.with_suffix(".dropped")
        shutil.rmtree(dropped, ignore_errors=True)
        shutil.rmtree(work.resume.rename(dropped))
        artifact = workspace.place(partial, manifest)
    partial.with_suffix(".lock").unlink(missing_ok=True)
    say(f"{artifact.ref} is ready ({seconds:.0f} s): {artifact.folder}")
    return artifact


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"modeldiff": __version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _forget_peak_memory() -> None:
    """The peak begins anew, with what is in use, where the system can do that (Linux, with the C library of GNU)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Largest resident memory of this process since it, or the stage that it runs, began."""
    # Linux's rusage starts with what the parent held when it started this process; VmHWM does not.
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def _commit() -> str | None:
    """The commit of the checkout this code runs from, None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip() or None
    return None
