"""What a stage would take, from a small run of it on this machine, which leaves nothing behind. For `--plan`.

What the stage reports as progress is counted in pairs, places and the like, so its time grows with them; what lies
between (loading models, writing) is taken to stay as it is.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from modeldiff.console import say, unheard
from modeldiff.errors import InputError
from modeldiff.settings import Settings
from modeldiff.workspace.artifact import MANIFEST_NAME, Artifact
from modeldiff.workspace.files import free_bytes
from modeldiff.workspace.ranks import launched
from modeldiff.workspace.workspace import PARTIAL, Workspace

Stage = TypeVar("Stage", bound=Settings)
# What stages are made from; a rehearsal sees these of the workspace, and no others.
_INPUTS = ("activations", "crosscoder", "features", "stitch")


@dataclasses.dataclass(frozen=True)
class Size:
    """A number that decides how long a stage runs.

    Attributes:
        full: its value in the run that is planned; small: in the rehearsal.
        parts: beginnings of the names of what takes time in proportion to it, as `progress` shows them.
        disk: kinds of artifacts whose size on disk is in proportion to it; memory: bytes that one more of it takes, by
            kind.
    """

    full: int
    small: int
    parts: tuple[str, ...]
    disk: tuple[str, ...] = ()
    memory: Mapping[str, int] = dataclasses.field(default_factory=dict)


def rehearse(
    run: Callable[[Stage, Workspace], Artifact], settings: Stage, sizes: Mapping[str, Size], workspace: Workspace
) -> dict[str, Any]:
    """Run one or several stages quietly, with small values of those settings that are in `sizes`. Other names there are
    of what follows from the settings.

    Returns what is planned: `time` (seconds: of the `run`, of each of its `parts`, of the `rest`); `stages`, by kind of
    artifact `time` and, in bytes, `peak_memory` and `written`; `load`, processes that were running already, by core;
    `disk_free`; and what it was `rehearsed` on. Raises InputError: there are
    several processes; and what the stages raise."""
    if launched()[0].world > 1:
        raise InputError("a plan is made by one process: leave torchrun out")
    small = {name: min(size.small, size.full) for name, size in sizes.items()}
    say(f"rehearse with {', '.join(f'{value:,} {name}' for name, value in small.items())}")
    fields = {field.name for field in dataclasses.fields(settings)}
    workspace.create()
    with TemporaryDirectory(prefix="rehearsal-", dir=workspace.folder / PARTIAL) as folder:
        there = Workspace(folder)
        there.create()
        _bring(workspace, there)
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        begun = time.monotonic()
        with unheard() as finished:
            run(dataclasses.replace(settings, **{name: small[name] for name in small.keys() & fields}), there)
        seconds = time.monotonic() - begun
        made = _made(there)
    parts: dict[str, float] = {}
    rest, covered = seconds, begun
    for start, end, what in sorted(finished):  # some are under way at the same time
        took, covered = max(0.0, end - max(start, covered)), max(end, covered)
        full = took * _times(small, sizes, "parts", what)
        parts[what] = parts.get(what, 0.0) + full
        rest -= took
        stage = next((one for one in made if one.ended >= end), made[-1])
        stage.seconds += full - took
    for one in made:
        one.written = round(one.written * _times(small, sizes, "disk", one.kind))
        one.peak_memory += _more_memory(small, sizes, one.kind)
    return {
        "time": {"run": sum(parts.values()) + rest, "parts": parts, "rest": rest},
        "stages": {
            one.kind: {"time": one.seconds, "peak_memory": one.peak_memory, "written": one.written} for one in made
        },
        "load": load,
        "disk_free": free_bytes(workspace.folder),
        "rehearsed": small,
    }


def _bring(workspace: Workspace, there: Workspace) -> None:
    """What stages are made from, as links."""
    for artifact in (one for kind in _INPUTS for one in workspace.artifacts(kind)):
        seen = there.folder / artifact.kind / artifact.folder.name
        seen.parent.mkdir(exist_ok=True)
        seen.symlink_to(artifact.folder.absolute())


def _made(there: Workspace) -> list[_Made]:
    """What the rehearsal made, in order."""
    found = (_Made.of(one) for one in there.artifacts() if not one.folder.is_symlink())
    return sorted(found, key=lambda one: one.ended)


def _times(small: dict[str, int], sizes: Mapping[str, Size], what: str, name: str) -> float:
    """How many times as much the whole is as the rehearsal, of what `name` stands for: of `parts`, or on `disk`."""
    return math.prod(
        size.full / small[number] for number, size in sizes.items() if name.startswith(getattr(size, what))
    )


def _more_memory(small: dict[str, int], sizes: Mapping[str, Size], kind: str) -> int:
    return sum((size.full - small[number]) * size.memory.get(kind, 0) for number, size in sizes.items())


@dataclasses.dataclass
class _Made:
    """An artifact that a rehearsal made. ended: when its stage did, as `time.monotonic` counts."""

    kind: str
    ended: float
    seconds: float
    peak_memory: int
    written: int

    @classmethod
    def of(cls, artifact: Artifact) -> _Made:
        manifest = artifact.manifest
        ended = (artifact.folder / MANIFEST_NAME).stat().st_mtime - time.time() + time.monotonic()
        return cls(artifact.kind, ended, manifest.seconds, manifest.peak_memory_bytes, artifact.size)
