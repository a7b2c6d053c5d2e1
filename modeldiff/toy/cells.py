"""Runs the cells of a plan: each distinct one once, in parallel, those that an earlier run has finished not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modeldiff.console import progress, say
from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.records import check_fields
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.plan import Planned
from modeldiff.workspace.files import read_json, sha256_json, write_json

# Counted up when the same cell would give another result than before.
SCHEMA = 5
_FIELDS = {"spec", "result", "digest"}

Compute = Callable[[CellSpec], dict[str, Any]]
"""`run_cell`, or what stands in for it. In more than one process it must be a function of a module."""


def distinct(planned: Sequence[Planned]) -> dict[str, list[Planned]]:
    """The places of each distinct cell, by its fingerprint, in the order of the plan."""
    cells: dict[str, list[Planned]] = {}
    for one in planned:
        cells.setdefault(fingerprint(one.cell), []).append(one)
    return cells


def fingerprint(cell: CellSpec) -> str:
    """SHA-256 over all that decides the result of a cell."""
    return sha256_json(["toy cell", SCHEMA, cell.to_json()])


def run_cells(
    cells: Mapping[str, Sequence[Planned]], folder: Path, compute: Compute, *, jobs: int
) -> dict[str, dict[str, Any]]:
    """The result of every cell. A finished cell is in the folder at once: whatever happens, only running ones are lost.

    Args:
        cells: as `distinct` gives them.
        folder: of finished cells, shared by all toy runs of a workspace: one JSON file each, whole or absent, checked.
        jobs: processes; with one, cells run in this process.

    Raises:
        MachineError: not enough memory; a process was killed.
        Exception: whatever a cell raised. The other processes end at once then, and when Ctrl-C is pressed.
    """
    found = {key: _kept(folder / f"{key}.json") for key in cells}
    results = {key: result for key, result in found.items() if result is not None}
    to_do = sorted((key for key in cells if key not in results), key=lambda key: _order(cells[key][0].cell))
    with progress("toy", len(cells), "cells", done=len(results)) as bar, _memory_errors():
        for number, result in _computed([cells[key][0].cell for key in to_do], compute, jobs):
            key = to_do[number]
            results[key] = _keep(folder / f"{key}.json", cells[key][0].cell, result)
            bar.advance()
    return results


def default_jobs(device: str) -> int:
    """One process per core; on a GPU one, which keeps it busy."""
    return _cores() if device == "cpu" else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _order(cell: CellSpec) -> tuple[int, float]:
    """Seed after seed, so that every row soon has something; within a seed the longest first."""
    train, world = cell.train, cell.world
    return cell.seed, -float(train["steps"] * train["batch"] * (train["features"] + world.width_a + world.width_b))


def _kept(path: Path) -> dict[str, Any] | None:
    """The result in a file, None if there is none. A file that is not what was written is said and dropped."""
    if not path.exists():
        return None
    try:
        data = read_json(path)
        check_fields(data, required=_FIELDS, where=str(path))
        if sha256_json([data["spec"], data["result"]]) != data["digest"]:
            raise DamagedError(f"{path}: its content is not what was written (digest differs)")
    except (DamagedError, InputError, ValueError) as error:
        say(f"{error}; dropped, the cell is computed again")
        path.unlink()
        return None
    result: dict[str, Any] = data["result"]
    return result


def _keep(path: Path, cell: CellSpec, result: dict[str, Any]) -> dict[str, Any]:
    """Keep a result durably; returns it as it will be read, so that a fresh one and a kept one are the same."""
    spec, result = json.loads(json.dumps([cell.to_json(), result], allow_nan=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"spec": spec, "result": result, "digest": sha256_json([spec, result])})
    return result


def _computed(cells: Sequence[CellSpec], compute: Compute, jobs: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the cell, its result), in the order in which they are ready."""
    threads = max(1, _cores() // jobs)
    if min(jobs, len(cells)) <= 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield from ((number, compute(cell)) for number, cell in enumerate(cells))
        finally:
            torch.set_num_threads(before)
        return
    with _processes(min(jobs, len(cells)), threads) as pool:
        numbers = {pool.submit(compute, cell): number for number, cell in enumerate(cells)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()


@contextmanager
def _processes(jobs: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Started anew, not forked: torch and CUDA do not survive a fork."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (threads,))
    try:
        yield pool
    except BrokenProcessPool:
        raise MachineError(
            "a process that computed cells was killed: if memory was short, use fewer --jobs; a script that calls this "
            "needs `if __name__ == '__main__'`, or --jobs 1"
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)


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


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise MachineError(
            "not enough memory for the cells that run at the same time: use fewer --jobs or a smaller --batch; "
            "the same command continues with the cells that are missing"
        ) from None
