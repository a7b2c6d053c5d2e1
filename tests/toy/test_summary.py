"""Figures of cells and of rows, on numbers that can be checked by hand."""

import csv
import io
import math
from typing import Any

import pytest

from modeldiff.toy.cells import distinct
from modeldiff.toy.plan import plan
from modeldiff.toy.summary import Record, cells_csv, exclusive_recall, figures, mean_and_error, records, summary
from modeldiff.toy.table import printed_tables
from tests.toy.made_cells import made_cell, tiny


def made_records(**values: Any) -> list[Record]:
    cells = distinct(plan(tiny(**values).filled(), "cpu"))
    return records(cells, {key: made_cell(planned[0].cell) for key, planned in cells.items()})


def test_mean_and_standard_error() -> None:
    found = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5
    assert found["se"] == pytest.approx(math.sqrt(5 / 3) / 2)  # sample variance 5/3, four values
    assert mean_and_error([0.3]) == {"mean": 0.3, "se": None, "n": 1}


def test_figures_of_both_models_together() -> None:
    result = made_records()[0].result
    result["recall"]["right"] = {"shared": 1.0, "A": 0.2, "B": 0.4}
    result["exclusive"]["A"]["shared"], result["exclusive"]["B"]["shared"] = 3, 4
    result["fve"] = {"a": 0.5, "b": 0.7}
    found = figures(result)
    assert found["exclusive_recall"] == exclusive_recall(result) == pytest.approx(0.3)
    assert found["exclusive_shared"] == 7
    assert found["fve"] == pytest.approx(0.6)
    assert found["fve_b"] == 0.7
    assert not any(isinstance(value, dict | list) for value in found.values())


def test_precision_and_recall_of_the_verdict() -> None:
    result = made_records()[0].result
    for side, (features, true, called, right) in {"A": (6, 2, 3, 2), "B": (4, 3, 2, 1)}.items():
        result["exclusive"][side] |= {"features": features, "true": true}
        result["verdict"][side] |= {"called": called, "true": right}
    found = figures(result)
    assert found["place_precision"] == pytest.approx(5 / 10)
    assert found["verdict_precision"] == pytest.approx(3 / 5)
    assert found["verdict_recall"] == pytest.approx(3 / 5)
    for side in ("A", "B"):
        result["verdict"][side] |= {"called": 0, "true": 0}
    assert (figures(result)["verdict_precision"], figures(result)["verdict_recall"]) == (None, 0)


def test_rows_are_means_over_the_seeds() -> None:
    cells = made_records(seeds=3)
    rows = summary(cells)
    assert len(rows) == 4
    for row in rows:
        of_row = [
            exclusive_recall(cell.result)
            for cell in cells
            if (cell.size, cell.spec["architecture"]) == (row["size"], row["architecture"])
        ]
        assert row["figures"]["exclusive_recall"] == mean_and_error([value for value in of_row if value is not None])
        assert row["figures"]["exclusive_recall"]["n"] == 3


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


def test_a_world_without_exclusive_concepts_has_no_recall() -> None:
    cells = made_records(map=("rotation",), exclusive_ratio=0.0)
    assert exclusive_recall(cells[0].result) is None
    rows = summary(cells)
    assert all("exclusive_recall" not in row["figures"] for row in rows)
    (table,) = printed_tables(rows)
    assert [name for name, _ in table.columns][2:4] == ["by place", "by verdict"]


def test_the_csv_has_one_row_per_distinct_cell() -> None:
    cells = made_records(tables=("sizes", "dial", "self-diff"), seeds=2)
    rows = list(csv.DictReader(io.StringIO(cells_csv(cells).decode())))
    assert len(rows) == len(cells)
    shared = [row for row in rows if row["tables"] == "sizes dial"]
    assert {(row["map"], row["size"]) for row in shared} == {("gaussian", "0.5")}
    for row, cell in zip(rows, cells, strict=True):
        assert float(row["fve_a"]) == cell.result["fve"]["a"]
        assert (int(row["seed"]), row["architecture"]) == (cell.spec["seed"], cell.spec["architecture"])
        assert row["noise"] == "0.01"
    assert "seconds" not in rows[0]  # which would differ from run to run


def test_the_printed_tables() -> None:
    cells = made_records(
        tables=("sizes", "dial", "selection", "self-diff"), seeds=2, map=("gaussian", "independent"), selection=("sum",)
    )
    gaussian, verdict, independent, _, dial, selection, self_diff = printed_tables(summary(cells))
    assert gaussian.title == "map gaussian, stitch R² 0.90, 2 seeds"
    assert independent.title == "map independent, stitch R² 0.16, 2 seeds"
    assert [row[:2] for row in gaussian.rows] == [
        ["50%", "standard"],
        ["", "dfc"],
        ["100%", "standard"],
        ["", "dfc"],
    ]
    assert verdict.title == "verdict, map gaussian, stitch R² 0.90, 2 seeds"
    # The made-up verdict is always right, and finds every feature that is.
    by_row = {(row[0], row[1]): row[2:] for row in verdict.rows}
    assert by_row["50%", "standard"][3] == by_row["", "dfc"][3] == "1.00±.00"
    assert by_row["", "dfc"][4] == "1.00±.00"
    stitch = [float(row[0]) for row in dial.rows if row[0]]
    assert stitch == sorted(stitch)
    assert selection.rows[0][:4] == ["sum", "sum", "0.1", "dfc"]
    assert self_diff.title.startswith("self-diff, 32 features for 64 concepts")
