"""What a benchmark would take, from some short cells. For `--plan`."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

from modeldiff.console import say
from modeldiff.lm.device import resolve_device
from modeldiff.threads import shared_cores
from modeldiff.toy import cells
from modeldiff.toy.cell import CellSpec, run_cell
from modeldiff.toy.settings import ToySettings
from modeldiff.workspace import Workspace
from modeldiff.workspace.files import free_bytes
from modeldiff.workspace.stage import peak_memory_bytes

# Two lengths of training, so that what does not grow with it is told apart.
_STEPS = (60, 180)


def plan(settings: ToySettings, workspace: Workspace) -> dict[str, Any]:
    """For `--plan`: number of `cells`, how many of them an earlier run has `kept`, `jobs`, `device`, and a `rehearsal`
    as `rehearse` gives it, whose parts are architectures. A cell of the middle size of each is timed. Raises as
    `run`."""
    settings = settings.filled()
    device = str(resolve_device(settings.device))
    found = cells.distinct(cells.plan(settings, device))
    jobs = cells.jobs_of(settings, device)
    missing: dict[str, list[CellSpec]] = defaultdict(list)
    for key, places in found.items():
        if cells.kept(workspace.toy_cells, key) is None:
            missing[places[0].cell.architecture].append(places[0].cell)
    say(f"train a cell of each architecture for {' and '.join(map(str, _STEPS))} steps")
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    with shared_cores(jobs):
        parts = {name: _seconds(some) / min(jobs, len(some)) for name, some in missing.items()}
    total = {"run": sum(parts.values()), "parts": parts, "rest": 0.0}
    one = {"time": total["run"], "peak_memory": jobs * peak_memory_bytes(), "written": len(found) * cells.CELL_BYTES}
    known = {"time": total, "stages": {"toy": one}, "load": load, "disk_free": free_bytes(workspace.folder)}
    known["rehearsed"] = {"cells": len(missing), "steps": _STEPS[1]}
    kept = len(found) - sum(map(len, missing.values()))
    return {"cells": len(found), "kept": kept, "jobs": jobs, "device": device, "rehearsal": known}


def _seconds(missing: list[CellSpec]) -> float:
    """Of all these cells, which are of one architecture."""
    middle = sorted(missing, key=lambda cell: cell.cost)[len(missing) // 2]
    few, more = (min(steps, middle.train["steps"]) for steps in _STEPS)
    taken = []
    for steps in (few, more):
        begun = time.monotonic()
        run_cell(replace(middle, train={**middle.train, "steps": steps}))
        taken.append(time.monotonic() - begun)
    each = max(0.0, taken[1] - taken[0]) / max(1, more - few)
    fixed = max(0.0, taken[0] - each * few)
    return sum(fixed + each * middle.train["steps"] * cell.cost / middle.cost for cell in missing)
