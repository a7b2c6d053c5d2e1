"""What a stage would take, from a small run of it on this machine, which leaves nothing behind. For `--plan`.

What the stage reports as progress is counted in pairs, places and the like, so its time grows with them; what lies
before, between and after (loading models, writing) is taken to stay as it is. Of several stages, what a first run takes
longer than the rehearsal says (imports, first calls of libraries) is added once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from modeldiff.console import Ended, say, unheard
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
        full: its value in the run that is planned; small: in the rehearsal; first: in a run before that, if any has
            one; else as in the rehearsal.
        parts: beginnings of the names of what takes time in proportion to it, as `progress` shows them.
        disk: kinds of artifacts whose size on disk is in proportion to it; memory: bytes that one more of it takes, by
            kind.
    """

    full: int
    small: int
    parts: tuple[str, ...]
    disk: tuple[str, ...] = ()
    memory: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first: int | None = None


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
    first = {name: min(size.first or small[name], small[name]) for name, size in sizes.items()}
    say(f"rehearse with {', '.join(f'{value:,} {name}' for name, value in small.items())}")
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    workspace.create()
    once = None
    if first != small:
        # So small a run may have too little to go on.
        with suppress(InputError):
            once = _Tried.of(run, settings, first, workspace)
    tried = _Tried.of(run, settings, small, workspace)
    parts, found = tried.scaled(sizes, {name: size.full for name, size in sizes.items()})
    if once:
        # What came first in the process took longer than the rehearsal says.
        _, expected = tried.scaled(sizes, first)
        for one, then, like in zip(found, once.made, expected, strict=True):
            one.seconds += max(0.0, then.seconds - like.seconds)
    rest = sum(one.seconds for one in found) + tried.between - sum(parts.values())
    return {
        "time": {"run": sum(parts.values()) + rest, "parts": parts, "rest": rest},
        "stages": {
            one.kind: {"time": one.seconds, "peak_memory": one.peak_memory, "written": one.written} for one in found
        },
        "load": load,
        "disk_free": free_bytes(workspace.folder),
        "rehearsed": small,
    }


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


@dataclasses.dataclass
class _Tried:
    """A run with these `sizes`: what it `made`, in order; the progress that `finished`; seconds that are of no stage,
    `between` them."""

    sizes: Mapping[str, int]
    made: list[_Made]
    finished: list[Ended]
    begun: float
    between: float

    @classmethod
    def of(
        cls,
        run: Callable[[Stage, Workspace], Artifact],
        settings: Stage,
        sizes: Mapping[str, int],
        workspace: Workspace,
    ) -> _Tried:
        fields = {field.name for field in dataclasses.fields(settings)}
        with TemporaryDirectory(prefix="rehearsal-", dir=workspace.folder / PARTIAL) as folder:
            there = Workspace(folder)
            there.create()
            _bring(workspace, there)
            begun = time.monotonic()
            with unheard() as finished:
                run(dataclasses.replace(settings, **{name: sizes[name] for name in sizes.keys() & fields}), there)
            seconds = time.monotonic() - begun
            made = [_Made.of(one) for one in there.artifacts() if not one.folder.is_symlink()]
        made.sort(key=lambda one: one.ended)
        return cls(sizes, made, finished, begun, seconds - sum(one.seconds for one in made))

    def scaled(self, sizes: Mapping[str, Size], to: Mapping[str, int]) -> tuple[dict[str, float], list[_Made]]:
        """(seconds by part, what is made) in a run with sizes `to`."""

        def times(what: str, name: str) -> float:
            """How many times as much, of what `name` stands for: of `parts`, or on `disk`."""
            of = (one for one, size in sizes.items() if name.startswith(getattr(size, what)))
            return math.prod(to[one] / self.sizes[one] for one in of)

        made = [dataclasses.replace(one) for one in self.made]
        parts: dict[str, float] = {}
        covered = self.begun
        for start, end, what, steady in sorted(self.finished):  # some are under way at the same time
            took, covered = max(0.0, end - max(start, covered)), max(end, covered)
            more = took * (steady / max(end - start, 1e-9)) * (times("parts", what) - 1)
            parts[what] = parts.get(what, 0.0) + took + more
            next((one for one in made if one.ended >= end), made[-1]).seconds += more
        for one in made:
            one.written = round(one.written * times("disk", one.kind))
            one.peak_memory += sum(
                (to[of] - self.sizes[of]) * size.memory.get(one.kind, 0) for of, size in sizes.items()
            )
        return parts, made


def _bring(workspace: Workspace, there: Workspace) -> None:
    """What stages are made from, as links."""
    for artifact in (one for kind in _INPUTS for one in workspace.artifacts(kind)):
        seen = there.folder / artifact.kind / artifact.folder.name
        seen.parent.mkdir(exist_ok=True)
        seen.symlink_to(artifact.folder.absolute())
