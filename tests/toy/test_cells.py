"""The cells of a benchmark: which there are, each computed once, kept at once, checked on reading, in any processes."""

import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modeldiff.errors import InputError, MachineError
from modeldiff.toy.cell import CellSpec, run_cell
from modeldiff.toy.cells import DIAL_MAPS, Planned, distinct, plan, run_cells
from modeldiff.toy.summary import figures
from modeldiff.workspace.files import sha256_json
from tests.toy.made_cells import failing_cell, made_cell, tiny

Cells = dict[str, list[Planned]]


def planned_of(**values: Any) -> list[Planned]:
    return plan(tiny(**values).filled(), "cpu")


def cells_of(**values: Any) -> Cells:
    return distinct(planned_of(**values))


def test_the_rows_of_every_table() -> None:
    planned = planned_of(map=("gaussian", "rotation"), seeds=3, sizes=(0.5, 0.75, 0.1 + 0.2))
    assert len({(one.cell.world.map, one.cell.seed, one.size, one.cell.architecture) for one in planned}) == 36
    assert {one.cell.train["features"] for one in planned} == {32, 48, 19}, "rounded down, as in the paper"
    planned = planned_of(tables=("dial", "selection", "self-diff"), sizes=(0.3, 0.6, 1.0))
    assert {one.size for one in planned} == {0.6}  # the one nearest to 0.5
    assert Counter(one.table for one in planned) == {"dial": 2 * len(DIAL_MAPS), "selection": 10, "self-diff": 2}
    variants = [
        (one.cell.train["selection"], one.cell.train["combine"], one.cell.train["dead_share"])
        for one in planned
        if one.table == "selection"
    ]
    scores = [(score, how, 0.1) for how in ("sum", "mean") for score in ("activation", "l2", "sum", "mean")]
    assert variants == [*scores, ("activation", "sum", 0.02), ("activation", "sum", 0.5)]
    self_diff = [one.cell.world for one in planned if one.table == "self-diff"]
    assert all(world.map == "rotation" and world.n_exclusive == 0 for world in self_diff)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_target": 65.0}, "--k-target"),
        ({"map": ("diagonal",)}, "--map"),
        ({"map": ("mixed:2",)}, "--map"),
        ({"sizes": (0.001,)}, "--sizes 0.001 of 64 concepts is no feature at all"),
        ({"sizes": (0.1,)}, "--exclusive 0.05 of 6 features leaves a partition empty"),
        ({"tables": ("selection",), "architectures": ("standard",)}, "--tables selection has no row"),
    ],
)
def test_settings_that_do_not_fit_are_found_before_anything_runs(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned_of(**values)


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


def dying_cell(cell: CellSpec) -> dict[str, Any]:
    os._exit(3)


def test_a_cell_of_several_tables_runs_once_seed_after_seed_and_the_longest_first(tmp_path: Path) -> None:
    planned = planned_of(tables=("sizes", "dial"), seeds=2)
    cells = distinct(planned)
    assert len(cells) == len(planned) - 4  # gaussian at size 0.5, two architectures and seeds
    counting = Counting()
    assert run_cells(cells, tmp_path, counting, jobs=1).keys() == cells.keys()
    assert [cell.seed for cell in counting.computed] == [0] * (len(cells) // 2) + [1] * (len(cells) // 2)
    features = [cell.train["features"] for cell in counting.computed if cell.seed == 0]
    assert features == sorted(features, reverse=True)


def test_an_interrupted_grid_continues(tmp_path: Path) -> None:
    cells = cells_of(seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path, Counting(most=5), jobs=1)
    rest = Counting()
    continued = run_cells(cells, tmp_path, rest, jobs=1)
    assert len(rest.computed) == 3
    assert continued == {key: made_cell(planned[0].cell) for key, planned in cells.items()}


@pytest.mark.parametrize("damage", ["truncated", "changed", "garbage", "field", "other cell", "deep", "type"])
def test_a_corrupt_cell_is_said_dropped_and_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    cells = cells_of()
    before = run_cells(cells, tmp_path, made_cell, jobs=1)
    first, second = (tmp_path / f"{key}.json" for key in list(cells)[:2])
    content = first.read_bytes()
    data = json.loads(content)
    changed = data | {"result": data["result"] | {"limit": 0.123}}
    damaged = {
        "truncated": content[: len(content) // 2],
        "changed": json.dumps(changed).encode(),
        "garbage": bytes(range(128, 255)),
        "field": json.dumps({"result": data["result"]}).encode(),
        "other cell": second.read_bytes(),
        "deep": b'{"result": ' + b"[" * 3000,
        "type": json.dumps({"result": [1], "digest": sha256_json([first.stem, [1]])}).encode(),
    }
    first.write_bytes(damaged[damage])
    capsys.readouterr()
    counting = Counting()
    assert run_cells(cells, tmp_path, counting, jobs=1) == before
    assert len(counting.computed) == 1
    said = capsys.readouterr().err
    assert first.name in said
    assert "dropped, the cell is computed again" in said
    assert first.read_bytes() == content


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
    with pytest.raises(MachineError, match=r"a process .* was killed: if memory was short"):
        run_cells(cells_of(steps=3), tmp_path, dying_cell, jobs=2)
    assert multiprocessing.active_children() == []


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    def hungry(cell: CellSpec) -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(MachineError, match="fewer --jobs"):
        run_cells(cells_of(), tmp_path, hungry, jobs=1)


SIZES = (0.2, 0.5, 1.0)
COUNTS = ("exclusive_features", "exclusive_true", "verdict_called", "verdict_true")


def test_the_verdict_of_trained_cells_is_right_more_often_than_the_partition_is() -> None:
    """Two seeds of plain DFCs of 64 concepts in width 16, a quarter of them in one model alone."""
    planned = planned_of(
        architectures=("dfc",), sizes=SIZES, exclusive_ratio=0.25, exclusive=0.2, seeds=2, steps=300, batch=256
    )
    counts = {size: dict.fromkeys(COUNTS, 0) for size in SIZES}
    for one in planned:
        found = figures(run_cell(one.cell))
        for name in COUNTS:
            counts[one.size][name] += int(found[name] or 0)
    for of in counts.values():
        assert of["exclusive_features"] >= 6, "there is something to judge"
        assert of["verdict_true"] <= of["exclusive_true"]
        by_place = of["exclusive_true"] / of["exclusive_features"]
        assert of["verdict_true"] / of["verdict_called"] >= max(0.75, by_place + 0.25)
    total = {name: sum(of[name] for of in counts.values()) for name in COUNTS}
    assert total["exclusive_true"] / total["exclusive_features"] < 0.45
    assert total["verdict_true"] / total["verdict_called"] >= 0.8
    assert total["verdict_true"] / total["exclusive_true"] >= 0.75
