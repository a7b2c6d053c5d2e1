"""Figures of cells and of rows on numbers that can be checked by hand, and the pictures."""

import math
from typing import Any

import pytest

from modeldiff.toy.cells import distinct, plan
from modeldiff.toy.figures import COLOURS, figures_of
from modeldiff.toy.settings import ARCHITECTURES
from modeldiff.toy.summary import Record, exclusive_recall, figures, mean_and_error, records, summary
from modeldiff.toy.table import printed_tables
from tests.toy.made_cells import made_cell, tiny


def made_records(**values: Any) -> list[Record]:
    cells = distinct(plan(tiny(**values).filled(), "cpu"))
    return records(cells, {key: made_cell(planned[0].cell) for key, planned in cells.items()})


def test_figures_of_both_models_together() -> None:
    result = made_records()[0].result
    result["recall"]["right"] = {"shared": 1.0, "A": 0.2, "B": 0.4}
    result["exclusive"]["A"] = result["exclusive"]["A"] | {"shared": 5}
    result["fve"] = {"a": 0.5, "b": 0.7}
    found = figures(result)
    assert found["exclusive_recall"] == exclusive_recall(result) == pytest.approx(0.3)
    assert found["exclusive_shared"] == 7
    assert found["fve"] == pytest.approx(0.6)
    assert found["fve_b"] == 0.7
    assert not any(isinstance(value, dict | list) for value in found.values())


def test_rows_are_means_over_the_seeds() -> None:
    found = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5
    assert found["se"] == pytest.approx(math.sqrt(5 / 3) / 2)  # sample variance 5/3, four values
    assert mean_and_error([0.3]) == {"mean": 0.3, "se": None, "n": 1}
    cells = made_records(seeds=3)
    rows = summary(cells)
    assert len(rows) == 4
    for row in rows:
        of_row = [
            exclusive_recall(cell.result)
            for cell in cells
            if (cell.size, cell.spec["architecture"]) == (row["size"], row["architecture"])
        ]
        assert len(of_row) == 3
        assert row["figures"]["exclusive_recall"] == mean_and_error([value for value in of_row if value is not None])


def test_fve_is_compared_with_the_standard_crosscoder_of_the_same_world() -> None:
    cells = made_records(seeds=2, sizes=(0.5,))
    for cell in cells:
        fve = 0.1 * cell.spec["seed"] + (0.6 if cell.spec["architecture"] == "standard" else 0.62)
        cell.result["fve"] = {"a": fve, "b": fve}
    standard, dfc = summary(cells)
    assert standard["figures"]["fve_over_standard"] == {"mean": 0, "se": 0, "n": 2}
    # The worlds differ by 0.1, the architectures by 0.02 in both.
    assert dfc["figures"]["fve_over_standard"]["mean"] == pytest.approx(0.02)
    assert dfc["figures"]["fve_over_standard"]["se"] == pytest.approx(0.0, abs=1e-12)
    assert dfc["figures"]["fve"]["se"] > 0.04


def drawn(**values: Any) -> dict[str, bytes]:
    cells = made_records(**values)
    return {name: draw() for name, draw in figures_of(cells, summary(cells)).items()}


def test_the_same_cells_give_the_same_pictures() -> None:
    values: dict[str, Any] = {"tables": ("sizes", "dial"), "seeds": 2}
    first = drawn(**values)
    assert first.keys() == {"sizes", "training", "dial"}
    assert first == drawn(**values)
    assert all(image.startswith(b"\x89PNG") for image in first.values())
    assert set(COLOURS) == set(ARCHITECTURES)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_only_what_the_cells_allow_is_drawn() -> None:
    assert drawn(tables=("self-diff",)) == {}
    assert drawn(tables=("dial",)).keys() == {"dial"}
    # Without exclusive concepts there is no recall of them.
    cells = made_records(map=("rotation",), exclusive_ratio=0.0)
    rows = summary(cells)
    assert all("exclusive_recall" not in row["figures"] for row in rows)
    assert figures_of(cells, rows) == {}
    (table,) = printed_tables(rows)
    assert [name for name, _ in table.columns][2:4] == ["by place", "by verdict"]
