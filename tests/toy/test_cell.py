"""Cells that are really trained, at a reduced size: what the verdict says against the known truth."""

from __future__ import annotations

import pytest

from modeldiff.toy.cell import run_cell
from modeldiff.toy.plan import plan
from modeldiff.toy.settings import ToySettings
from modeldiff.toy.summary import figures

SIZES = (0.2, 0.5, 1.0)
COUNTS = ("exclusive_features", "exclusive_true", "verdict_called", "verdict_true")


@pytest.fixture(scope="module")
def counts() -> dict[float, dict[str, int]]:
    """By size, summed over two seeds: plain DFCs of 64 concepts in width 16, a quarter of them in one model alone."""
    settings = ToySettings(
        preset="quick", architectures=("dfc",), sizes=SIZES, exclusive_ratio=0.25, exclusive=0.2, seeds=2, device="cpu"
    )
    made = {size: dict.fromkeys(COUNTS, 0) for size in SIZES}
    for one in plan(settings.filled(), "cpu"):
        found = figures(run_cell(one.cell))
        for name in COUNTS:
            made[one.size][name] += int(found[name] or 0)
    return made


def precision(of: dict[str, int]) -> float:
    return of["verdict_true"] / of["verdict_called"]


def by_place(of: dict[str, int]) -> float:
    return of["exclusive_true"] / of["exclusive_features"]


@pytest.mark.parametrize("size", SIZES)
def test_the_verdict_is_right_more_often_than_the_partition_is(
    size: float, counts: dict[float, dict[str, int]]
) -> None:
    of = counts[size]
    assert of["exclusive_features"] >= 6, "there is something to judge"
    assert of["verdict_true"] <= of["exclusive_true"]
    assert precision(of) >= max(0.75, by_place(of) + 0.25)


def test_the_verdict_finds_nearly_all_and_is_nearly_always_right(counts: dict[float, dict[str, int]]) -> None:
    total = {name: sum(of[name] for of in counts.values()) for name in COUNTS}
    assert by_place(total) < 0.45
    assert precision(total) >= 0.8
    assert total["verdict_true"] / total["exclusive_true"] >= 0.75
