"""The cells of a plan: each computed once, kept at once, checked on reading, in one process or in several."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.errors import InputError, MachineError
from modeldiff.toy.cache import CellCache
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.grid import distinct, run_cells
from modeldiff.toy.live import work
from modeldiff.toy.plan import Planned, plan
from modeldiff.workspace import Workspace
from tests.toy.made_cells import failing_cell, made_cell, tiny

Cells = dict[str, list[Planned]]


@pytest.fixture
def cache(tmp_path: Path) -> CellCache:
    workspace = Workspace(tmp_path / "ws")
    workspace.create()
    return CellCache(workspace)


class Counting:
    """`made_cell`, which remembers what it computed and can be interrupted."""

    def __init__(self, most: int | None = None) -> None:
        self.computed: list[CellSpec] = []
        self.most = most

    def __call__(self, cell: CellSpec, on_step: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        if len(self.computed) == self.most:
            raise KeyboardInterrupt
        self.computed.append(cell)
        return made_cell(cell, on_step)


def cells_of(**values: Any) -> Cells:
    return distinct(plan(tiny(**values).filled(), "cpu"))


def dying_cell(cell: CellSpec, on_step: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    os._exit(3)


def test_a_cell_of_several_tables_runs_once(cache: CellCache) -> None:
    planned = plan(tiny(tables=("sizes", "dial")).filled(), "cpu")
    cells = distinct(planned)
    assert len(cells) == len(planned) - 2  # gaussian at size 0.5, two architectures
    counting = Counting()
    assert run_cells(cells, cache, counting, jobs=1).keys() == cells.keys()
    assert len(counting.computed) == len(cells)


def test_seed_after_seed_and_the_longest_first(cache: CellCache) -> None:
    counting = Counting()
    run_cells(cells_of(seeds=3, sizes=(0.5, 1.0)), cache, counting, jobs=1)
    assert [cell.seed for cell in counting.computed] == [0] * 4 + [1] * 4 + [2] * 4
    times = [work(cell) for cell in counting.computed[:4]]
    assert times == sorted(times, reverse=True)


def test_an_interrupted_grid_continues(cache: CellCache) -> None:
    cells = cells_of(seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, cache, Counting(most=5), jobs=1)
    rest = Counting()
    continued = run_cells(cells, cache, rest, jobs=1)
    assert len(rest.computed) == 3
    assert continued == {key: made_cell(planned[0].cell) for key, planned in cells.items()}


def test_a_stale_cell_is_computed_again(cache: CellCache) -> None:
    cells = cells_of()
    run_cells(cells, cache, made_cell, jobs=1)
    stale, counting, done = next(iter(cells)), Counting(), []
    run_cells(cells, cache, counting, jobs=1, stale=lambda key: key == stale, done=done.append)
    assert counting.computed == [cells[stale][0].cell]
    assert done == [stale]


@pytest.mark.parametrize("damage", ["truncated", "changed", "garbage", "field"])
def test_a_corrupt_cell_is_said_dropped_and_computed_again(
    cache: CellCache, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    cells = cells_of()
    before = run_cells(cells, cache, made_cell, jobs=1)
    path = cache.path(next(iter(cells.values()))[0].cell)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        path.write_bytes(bytes(range(128, 255)))
    else:
        data = json.loads(content)
        if damage == "changed":
            data["result"]["wrong_shared"] += 1
        else:
            del data["digest"]
        path.write_text(json.dumps(data))
    capsys.readouterr()
    counting = Counting()
    assert run_cells(cells, cache, counting, jobs=1) == before
    assert len(counting.computed) == 1
    said = capsys.readouterr().err
    assert path.name in said
    assert "dropped, the cell is computed again" in said
    assert path.read_bytes() == content


def test_processes_give_what_one_process_gives_and_leave_nothing_behind(cache: CellCache) -> None:
    cells = cells_of(seeds=3)
    results = run_cells(cells, cache, made_cell, jobs=2)
    assert results == {key: made_cell(planned[0].cell) for key, planned in cells.items()}
    assert all(cache.read(planned[0].cell) == results[key] for key, planned in cells.items())
    with pytest.raises(InputError, match="diverged at step 7"):  # as itself, and what was done before is kept
        run_cells(cells_of(seeds=2, lr=0.5), cache, failing_cell, jobs=2)
    assert multiprocessing.active_children() == []
    kept = Counting()
    run_cells(cells_of(seeds=2, lr=0.5), cache, kept, jobs=1)
    assert 4 <= len(kept.computed) < 8


def test_a_process_that_is_killed_is_one_line(cache: CellCache) -> None:
    with pytest.raises(MachineError, match=r"a process .* ended \(exit code 3\): if memory was short"):
        run_cells(cells_of(), cache, dying_cell, jobs=2)
    assert multiprocessing.active_children() == []


def test_too_little_memory_is_one_line(cache: CellCache) -> None:
    def hungry(cell: CellSpec, on_step: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(MachineError, match="fewer --jobs"):
        run_cells(cells_of(), cache, hungry, jobs=1)
