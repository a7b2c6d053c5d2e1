"""What a stage would take, from a small run of it on this machine, which leaves nothing behind. For `--plan`.

What the stage reports as progress is counted in pairs, places and the like, so its time grows with them; what lies
between (loading models, writing) is taken to stay as it is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from modeldiff.console import say, unheard
from modeldiff.settings import Settings
from modeldiff.workspace.artifact import Artifact
from modeldiff.workspace.files import free_bytes
from modeldiff.workspace.stage import peak_memory_bytes
from modeldiff.workspace.workspace import PARTIAL, Workspace

Stage = TypeVar("Stage", bound=Settings)
# What stages are made from; a rehearsal sees these of the workspace, and no others.
_INPUTS = ("activations", "crosscoder", "stitch")


@dataclasses.dataclass(frozen=True)
class Size:
    """A number of the settings that decides how long a stage runs.

    Attributes:
        full: its value in the run that is planned; small: in the rehearsal.
        parts: beginnings of the names of what takes time in proportion to it, as `progress` shows them.
    """

    full: int
    small: int
    parts: tuple[str, ...]


def rehearse(
    run: Callable[[Stage, Workspace], Artifact], settings: Stage, sizes: Mapping[str, Size], workspace: Workspace
) -> dict[str, Any]:
    """Run a stage with small values of the settings in `sizes`, quietly; seconds of the `run` that is planned, of each
    of its `parts` and of the `rest`; `peak_memory` (bytes, of this process, so far) and `written` (bytes of the
    artifact) of the rehearsal; `disk_free`; and what it was `rehearsed` on. Raises what the stage raises."""
    small = {name: min(size.small, size.full) for name, size in sizes.items()}
    say(f"rehearse with {', '.join(f'{value:,} {name}' for name, value in small.items())}")
    workspace.create()
    with TemporaryDirectory(prefix="rehearsal-", dir=workspace.folder / PARTIAL) as folder:
        there = Workspace(folder)
        there.create()
        for artifact in (one for kind in _INPUTS for one in workspace.artifacts(kind)):
            seen = Path(folder) / artifact.kind / artifact.folder.name
            seen.parent.mkdir(exist_ok=True)
            seen.symlink_to(artifact.folder.absolute())
        begun = time.monotonic()
        with unheard() as finished:
            artifact = run(dataclasses.replace(settings, **small), there)
        seconds = time.monotonic() - begun
        written = artifact.size
    parts: dict[str, float] = {}
    rest, covered = seconds, begun
    for start, end, what in sorted(finished):  # some are under way at the same time
        took, covered = max(0.0, end - max(start, covered)), max(end, covered)
        grows = (size.full / small[name] for name, size in sizes.items() if what.startswith(size.parts))
        parts[what] = parts.get(what, 0.0) + took * next(grows, 1.0)
        rest -= took
    return {
        "time": {"run": sum(parts.values()) + rest, "parts": parts, "rest": rest},
        "peak_memory": peak_memory_bytes(),
        "written": written,
        "disk_free": free_bytes(workspace.folder),
        "rehearsed": small,
    }
