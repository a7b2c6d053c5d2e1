"""Runs the cells of a plan: each distinct one once, those in the cache not at all, the others in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modeldiff.toy.cache import CellCache, fingerprint
from modeldiff.toy.live import Board, work
from modeldiff.toy.plan import Planned
from modeldiff.toy.pool import Compute, compute_all


def distinct(planned: Sequence[Planned]) -> dict[str, list[Planned]]:
    """The places of each distinct cell, by its fingerprint, in the order of the plan."""
    cells: dict[str, list[Planned]] = {}
    for one in planned:
        cells.setdefault(fingerprint(one.cell), []).append(one)
    return cells


def run_cells(
    cells: Mapping[str, Sequence[Planned]],
    cache: CellCache,
    compute: Compute,
    *,
    jobs: int,
    stale: Callable[[str], bool] = lambda _: False,
    done: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """The result of every cell. A finished cell is in the cache at once: whatever happens, only running ones are lost.

    Args:
        cells: as `distinct` gives them.
        compute: `run_cell`.
        jobs: processes.
        stale: which cells are computed although the cache has them.
        done: called with the key of every cell that was computed, after it was written.

    Raises:
        MachineError: not enough memory; a process was killed.
        Exception: whatever a cell raised.
    """
    results: dict[str, dict[str, Any]] = {}
    for key, planned in cells.items():
        result = None if stale(key) else cache.read(planned[0].cell)
        if result is not None:
            results[key] = result
    to_do = sorted((key for key in cells if key not in results), key=lambda key: _order(cells[key][0]))
    board = Board(cells, to_do)
    for key, result in results.items():
        board.add(key, result)

    def finished(number: int, result: dict[str, Any]) -> None:
        key = to_do[number]
        results[key] = cache.write(cells[key][0].cell, result)
        done(key)
        board.add(key, result)

    if to_do:
        with board.shown():
            compute_all(
                [cells[key][0].cell for key in to_do],
                compute,
                jobs=min(jobs, len(to_do)),
                threads=max(1, cores() // jobs),
                on_step=lambda number, steps, total: board.step(to_do[number], steps, total),
                on_done=finished,
            )
    return results


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(device: str) -> int:
    """One process per core; on a GPU one, which keeps it busy."""
    return cores() if device == "cpu" else 1


def _order(one: Planned) -> tuple[int, float]:
    """Seed after seed, so that every row soon has something; within a seed the longest first."""
    return one.cell.seed, -work(one.cell)


class Recomputed:
    """Which cells a forced run has computed anew, kept in a file: when it is interrupted it goes on, not back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # A line that a kill tore off matches no cell.
        self._keys = set(path.read_text(encoding="utf-8").split()) if path.exists() else set()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        self._keys.add(key)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{key}\n")
