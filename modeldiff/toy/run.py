"""The stage `toy`: nothing -> how well dictionaries find what only one model has, on data whose truth is known.

Layout (normative):
    cells.json
        cells[]                     a trained dictionary each: fields of `Record` (toy/summary.py)
            spec                    fields of `CellSpec` (toy/cell.py)
                world               fields of `WorldSpec` (toy/world.py)
            result                  measured on pairs that were not trained on; partitions are A, shared, B
                recall              share of the concepts of each class that are recovered: `Recovery.recall`
                exclusive           what the exclusive features are: `Recovery` (toy/recovery.py)
                fve, fve_shared, gain_exclusive    by side, as in training.jsonl of a crosscoder
                l0, dead            by partition
                verdict             by model, of the features that the evidence calls exclusive; as `exclusive`
                limit               highest recall that the slots given at the start allow; null: nothing is exclusive
                curve               `recall` during training, with step and pairs
                stitch              R² of the best linear map, a_to_b and b_to_a
    cells.csv                       the same, a row each: `tables`, `size`, the fields of world and training, seed,
                                    architecture, device; numbers of the result, named by their paths with _, and of
                                    both models together (`figures`, toy/summary.py)
    summary.json
        rows[]                      of every table, over seeds: see `summary` (toy/summary.py)
            table, map, exclusive_ratio, size, architecture, selection, combine, dead_share
            features, concepts      number
            figures                 by name as in cells.csv: mean, se (standard error; null of one), n (seeds)
    figures/sizes.png?, figures/training.png?, figures/dial.png?    of the tables that were made
"""

from __future__ import annotations

import dataclasses
from typing import Any

from modeldiff.console import say
from modeldiff.figures import write_figure
from modeldiff.lm.device import resolve_device
from modeldiff.toy.cell import run_cell
from modeldiff.toy.cells import CELL_BYTES, distinct, jobs_of, plan, run_cells
from modeldiff.toy.cells import SCHEMA as CELL_SCHEMA
from modeldiff.toy.figures import figures_of
from modeldiff.toy.settings import ToySettings
from modeldiff.toy.summary import cells_csv, records, summary
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.files import require_free

# Counted up when the same cells would be written or summed up differently.
SCHEMA = 5
SUMMARY_NAME = "summary.json"


def run(settings: ToySettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Run the benchmark, or answer with the one that these settings gave before. Cells that any earlier run finished
    are taken from the workspace, unless `force`. More than one job starts processes: a script needs the usual `if
    __name__ == "__main__"`. Raises InputError: settings that do not fit together; MachineError: not enough memory; no
    such device."""
    settings = settings.filled()
    device = str(resolve_device(settings.device))
    cells = distinct(plan(settings, device))
    jobs = jobs_of(settings, device)

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=device, jobs=jobs)
        say(f"{len(cells)} cells of {settings.steps:,} steps of {settings.batch} pairs, {jobs} at a time on {device}")
        require_free(workspace.folder, 2 * CELL_BYTES * len(cells), f"a benchmark of {len(cells)} cells")
        if force and not (begun := work.resume / "forced").exists():
            # Dropped once: when a forced run is interrupted, it goes on, not back.
            for key in cells:
                (workspace.toy_cells / f"{key}.json").unlink(missing_ok=True)
            begun.touch()
        results = run_cells(cells, workspace.toy_cells, run_cell, jobs=jobs)
        done = records(cells, results)
        rows = summary(done)
        work.write_json("cells.json", {"cells": [dataclasses.asdict(record) for record in done]})
        work.write_bytes("cells.csv", cells_csv(done))
        work.write_json(SUMMARY_NAME, {"rows": rows})
        for figure, draw in figures_of(done, rows).items():
            write_figure(work, f"figures/{figure}.png", draw)
        return {"cells": len(cells)}

    order = Order("toy", settings, {}, SCHEMA, {"device": device, "cells": CELL_SCHEMA})
    return produce(workspace, order, build, name=name, force=force)
