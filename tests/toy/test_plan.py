"""Which cells a benchmark consists of."""

from collections import Counter

import pytest

from modeldiff.errors import InputError
from modeldiff.toy.plan import DIAL_MAPS, plan, side_size
from modeldiff.toy.settings import ToySettings
from tests.toy.made_cells import tiny


def test_the_papers_dictionary_sizes() -> None:
    planned = plan(ToySettings(preset="paper", seeds=1, architectures=("standard",)).filled(), "cpu")
    sizes = [204, 409, 614, 819, 1024, 1228, 1433, 1638, 1843, 2048, 3072, 4096]  # the ticks of its figure 4
    assert [one.cell.train["features"] for one in planned] == sizes


def test_sizes_is_every_combination() -> None:
    settings = tiny(map=("gaussian", "rotation"), seeds=3, sizes=(0.5, 0.75, 1.0))
    planned = plan(settings.filled(), "cpu")
    assert len(planned) == 2 * 3 * 2 * 3
    assert {one.cell.world.map for one in planned} == {"gaussian", "rotation"}
    assert {one.cell.seed for one in planned} == {0, 1, 2}
    assert {one.cell.train["features"] for one in planned} == {32, 48, 64}
    assert all(one.cell.device == "cpu" and one.cell.train["k"] == 2 for one in planned)


def test_the_side_tables() -> None:
    settings = tiny(
        tables=("dial", "selection", "self-diff"),
        sizes=(0.3, 0.6, 1.0),
        selection=("activation", "sum"),
        combine=("sum", "mean"),
        dead_share=(0.1, 0.5),
    )
    planned = plan(settings.filled(), "cpu")
    assert {one.size for one in planned} == {0.6}  # the one nearest to 0.5
    assert Counter(one.table for one in planned) == {"dial": 2 * len(DIAL_MAPS), "selection": 5, "self-diff": 2}
    variants = [
        (one.cell.train["selection"], one.cell.train["combine"], one.cell.train["dead_share"])
        for one in planned
        if one.table == "selection"
    ]
    assert sorted(variants) == [
        ("activation", "mean", 0.1),
        ("activation", "sum", 0.1),
        ("activation", "sum", 0.5),
        ("sum", "mean", 0.1),
        ("sum", "sum", 0.1),
    ]
    self_diff = [one.cell.world for one in planned if one.table == "self-diff"]
    assert all(world.map == "rotation" and world.n_exclusive == 0 for world in self_diff)


def test_the_size_of_the_side_tables() -> None:
    assert side_size((0.1, 0.4, 1.0)) == 0.4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exclusive_ratio": 1.5}, "--exclusive-ratio"),
        ({"k_target": 65.0}, "--k-target"),
        ({"concepts": 0}, "--concepts"),
        ({"map": ("diagonal",)}, "--map"),
        ({"map": ("mixed:2",)}, "--map"),
        ({"sizes": (0.001,)}, "--sizes 0.001 of 64 concepts is no feature at all"),
        ({"sizes": (0.1,)}, "--exclusive 0.05 of 6 features leaves a partition empty"),
        ({"architectures": ("dfc", "best")}, "--architectures expects standard, .*found 'best'"),
        ({"tables": ("selection",), "architectures": ("standard",)}, "--tables selection has no row"),
    ],
)
def test_settings_that_do_not_fit_are_found_before_anything_runs(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(tiny(**values).filled(), "cpu")
