"""Which cells a benchmark consists of, and running them: each distinct one once, in parallel, kept when it is done."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from modeldiff.console import progress, say
from modeldiff.crosscoder.settings import Selection, TrainSettings
from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.threads import available_cores
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.settings import Architecture, Table, ToySettings
from modeldiff.toy.world import WorldSpec
from modeldiff.workspace.files import read_json, sha256_json, write_json

# Counted up when the same cell would give another result than before.
SCHEMA = 6
# From models without anything in common to the paper's map, whose models a linear map can stitch.
DIAL_MAPS = ("independent", *(f"mixed:{share}" for share in (0.25, 0.5, 0.6, 0.7, 0.8, 0.9)), "gaussian")
# What the table `selection` compares; the first of each is the default of `train`: every score with either way to
# combine the encoders, and other dead windows.
_SELECTION: tuple[dict[str, Any], ...] = (
    *({"combine": combine, "selection": score} for combine in ("sum", "mean") for score in get_args(Selection)),
    *({"dead_share": share} for share in (0.02, 0.5)),
)
# The architectures of the other tables than `sizes`. Scores and the dead window matter most to partitions.
# Of a cell's result, which is kept and comes into the artifact.
CELL_BYTES = 16 << 10
_COMPARED: tuple[Architecture, ...] = ("standard", "dfc", "dfc-audited", "stitch-residual")
_PARTITIONED = ("dfc", "dfc-audited")
# The tables with one size of the dictionary take the one nearest to this.
_ONE_SIZE = 0.5

Compute = Callable[[CellSpec], dict[str, Any]]
"""`run_cell`, or what stands in for it. In more than one process it must be a function of a module."""


@dataclass(frozen=True)
class Planned:
    table: Table
    size: float
    """Size of the dictionary as a share of the concepts, as the settings give it."""
    cell: CellSpec


def plan(settings: ToySettings, device: str) -> list[Planned]:
    """Every cell of every table of filled settings, rows in their order, seeds together; a cell of two tables twice.
    Raises InputError: settings that do not fit together, found before anything runs."""
    planned = []
    default = TrainSettings()
    train = {name: getattr(settings, name) for name in ("k", "exclusive", "steps", "batch")}
    train |= {name: getattr(default, name) for name in ("selection", "combine", "dead_share")}
    train |= {} if settings.lr is None else {"lr": settings.lr}
    rows = ((table, *row) for table in settings.tables for row in itertools.product(*_axes(settings)[table]))
    for table, world_values, train_values, size, architecture in rows:
        of_world = {field.name: getattr(settings, field.name) for field in dataclasses.fields(WorldSpec)}
        world = WorldSpec(**{**of_world, **world_values})
        # Rounded down, as the paper's dictionary sizes are (20 % of 2048 is 409 there).
        features = int(size * world.concepts + 1e-9)
        if features < 1:
            raise InputError(f"--sizes {size:g} of {world.concepts} concepts is no feature at all: ask for more")
        for seed in range(settings.seeds or 1):
            values = {"features": features, **train, **train_values}
            cell = CellSpec(world=world, seed=seed, architecture=architecture, train=values, device=device)
            cell.check()
            planned.append(Planned(table, size, cell))
    if not planned:
        raise InputError(
            f"--tables {' '.join(settings.tables)} has no row for --architectures {' '.join(settings.architectures)}"
        )
    return planned


def _axes(settings: ToySettings) -> dict[Table, tuple[Sequence[Any], ...]]:
    """What the rows of a table combine: values of the world, settings of the training, sizes, architectures."""
    one_size = [min(settings.sizes, key=lambda size: abs(size - _ONE_SIZE))]
    compared = [one for one in _COMPARED if one in settings.architectures]
    partitioned = [one for one in compared if one in _PARTITIONED]
    return {
        "sizes": ([{"map": name} for name in settings.map], [{}], settings.sizes, settings.architectures),
        "dial": ([{"map": name} for name in DIAL_MAPS], [{}], one_size, compared),
        "selection": ([{"map": "gaussian"}], _SELECTION, one_size, partitioned),
        "self-diff": ([{"map": "rotation", "exclusive_ratio": 0.0}], [{}], one_size, compared),
    }


def distinct(planned: Iterable[Planned]) -> dict[str, list[Planned]]:
    """The places of each distinct cell, by its fingerprint, in the order of the plan."""
    cells: dict[str, list[Planned]] = {}
    for one in planned:
        cells.setdefault(sha256_json(["toy cell", SCHEMA, dataclasses.asdict(one.cell)]), []).append(one)
    return cells


def run_cells(
    cells: Mapping[str, Sequence[Planned]], folder: Path, compute: Compute, *, jobs: int
) -> dict[str, dict[str, Any]]:
    """The result of every cell. A finished cell is in the folder at once: whatever happens, only running ones are lost.

    folder: of finished cells, shared by all toy runs of a workspace: one JSON file each, whole or absent, checked;
    jobs: processes; with one, cells run in this process. Raises MachineError: not enough memory; a process was killed.
    Exception: whatever a cell raised. The other processes end at once then, and when Ctrl-C is pressed.
    """
    results = {key: found for key in cells if (found := kept(folder, key)) is not None}
    specs = {key: planned[0].cell for key, planned in cells.items() if key not in results}
    # Seed after seed, so that every row soon has something; within a seed the longest first.
    to_do = sorted(specs, key=lambda key: (specs[key].seed, -specs[key].cost))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with progress("toy", len(cells), "cells", done=len(results)) as bar:
            for number, computed in _computed([specs[key] for key in to_do], compute, jobs):
                # As it will be read, so that a fresh result and a kept one are the same.
                result = json.loads(json.dumps(computed, allow_nan=False))
                key = to_do[number]
                write_json(folder / f"{key}.json", {"result": result, "digest": sha256_json([key, result])})
                results[key] = result
                bar.advance()
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise MachineError(
            "not enough memory for the cells that run at the same time: use fewer --jobs or a smaller --batch; "
            "the same command continues with the cells that are missing"
        ) from None
    return results


def kept(folder: Path, key: str) -> dict[str, Any] | None:
    """The result of an earlier run, None if there is none. A file that is not what was written is said and dropped."""
    path = folder / f"{key}.json"
    if not path.exists():
        return None
    try:
        data = read_json(path)
        result = data.get("result")
        if isinstance(result, dict) and sha256_json([key, result]) == data.get("digest"):
            return result
        raise DamagedError(f"{path}: its content is not what was written (digest differs)")
    except (DamagedError, ValueError) as error:
        say(f"{error}; dropped, the cell is computed again")
        path.unlink()
        return None


def jobs_of(settings: ToySettings, device: str) -> int:
    """Processes; one of them keeps a GPU busy."""
    return settings.jobs or (available_cores() if device == "cpu" else 1)


def _computed(cells: Sequence[CellSpec], compute: Compute, jobs: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the cell, its result), in the order in which they are ready."""
    if min(jobs, len(cells)) <= 1:
        yield from ((number, compute(cell)) for number, cell in enumerate(cells))
        return
    others = set(multiprocessing.active_children())
    # Started anew, not forked: torch and CUDA do not survive a fork.
    spawn, threads = multiprocessing.get_context("spawn"), max(1, available_cores() // jobs)
    with ProcessPoolExecutor(min(jobs, len(cells)), spawn, _begin, (threads,)) as pool:
        try:
            numbers = {pool.submit(compute, cell): number for number, cell in enumerate(cells)}
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise MachineError(
                "a process that computed cells was killed: if memory was short, use fewer --jobs; a script that calls "
                "this needs `if __name__ == '__main__'`, or --jobs 1"
            ) from None
        finally:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()


def _begin(threads: int) -> None:
    """A worker process never sees Ctrl-C, since its parent ends it, and ends when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
