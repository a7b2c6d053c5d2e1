"""The cells of a plan: each computed once, kept at once, checked on reading, in one process or in several."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from modeldiff.errors import InputError, MachineError
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.cells import distinct, run_cells
from modeldiff.toy.plan import Planned, plan
from tests.toy.made_cells import failing_cell, made_cell, tiny

Cells = dict[str, list[Planned]]


class Counting:
    """`made_cell`, which remembers what it computed and can be interrupted."""

    def __init__(self, most: int | None = None) -> None:
        self.computed: list[CellSpec] = []
        self.most = most

    def __call__(self, cell: CellSpec) -> dict[str, Any]:
        if len(self.computed) == self.most:
            raise KeyboardInterrupt
        self.computed.append(cell)
        return made_cell(cell)


def cells_of(**values: Any) -> Cells:
    return distinct(plan(tiny(**values).filled(), "cpu"))


def dying_cell(cell: CellSpec) -> dict[str, Any]:
    os._exit(3)


def test_a_cell_of_several_tables_runs_once(tmp_path: Path) -> None:
    planned = plan(tiny(tables=("sizes", "dial")).filled(), "cpu")
    cells = distinct(planned)
    assert len(cells) == len(planned) - 2  # gaussian at size 0.5, two architectures
    counting = Counting()
    assert run_cells(cells, tmp_path, counting, jobs=1).keys() == cells.keys()
    assert len(counting.computed) == len(cells)


def test_seed_after_seed_and_the_longest_first(tmp_path: Path) -> None:
    counting = Counting()
    run_cells(cells_of(seeds=3, sizes=(0.5, 1.0)), tmp_path, counting, jobs=1)
    assert [cell.seed for cell in counting.computed] == [0] * 4 + [1] * 4 + [2] * 4
    features = [cell.train["features"] for cell in counting.computed[:4]]
    assert features == sorted(features, reverse=True)


def test_an_interrupted_grid_continues(tmp_path: Path) -> None:
    cells = cells_of(seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path, Counting(most=5), jobs=1)
    rest = Counting()
    continued = run_cells(cells, tmp_path, rest, jobs=1)
    assert len(rest.computed) == 3
    assert continued == {key: made_cell(planned[0].cell) for key, planned in cells.items()}


@pytest.mark.parametrize("damage", ["truncated", "changed", "garbage", "field"])
def test_a_corrupt_cell_is_said_dropped_and_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    cells = cells_of()
    before = run_cells(cells, tmp_path, made_cell, jobs=1)
    path = tmp_path / f"{next(iter(cells))}.json"
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
    assert run_cells(cells, tmp_path, counting, jobs=1) == before
    assert len(counting.computed) == 1
    said = capsys.readouterr().err
    assert path.name in said
    assert "dropped, the cell is computed again" in said
    assert path.read_bytes() == content


def test_processes_give_what_one_process_gives_and_leave_nothing_behind(tmp_path: Path) -> None:
    cells = cells_of(seeds=3)
    results = run_cells(cells, tmp_path, made_cell, jobs=2)
    assert results == {key: made_cell(planned[0].cell) for key, planned in cells.items()}
    with pytest.raises(InputError, match="diverged at step 7"):  # as itself, and what was done before is kept
        run_cells(cells_of(seeds=2, lr=0.5), tmp_path, failing_cell, jobs=2)
    assert multiprocessing.active_children() == []
    kept = Counting()
    run_cells(cells_of(seeds=2, lr=0.5), tmp_path, kept, jobs=1)
    assert 4 <= len(kept.computed) < 8


def test_a_process_that_is_killed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"a process .* was killed: if memory was short"):
        run_cells(cells_of(), tmp_path, dying_cell, jobs=2)
    assert multiprocessing.active_children() == []


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    def hungry(cell: CellSpec) -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(MachineError, match="fewer --jobs"):
        run_cells(cells_of(), tmp_path, hungry, jobs=1)
