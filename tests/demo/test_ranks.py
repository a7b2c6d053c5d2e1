"""The ranks of planted differences, on lists whose answer is known."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from modeldiff.demo.pipeline import strongest_claim
from modeldiff.demo.ranks import planted_ranks
from modeldiff.demo.truth import habits
from modeldiff.features.table import FeatureTable


def table(mass: dict[tuple[str, int], float], lists: dict[str, list[int]]) -> FeatureTable:
    """A stand-in: `mass` gives the activation of (source, feature), `lists` the order of each side's features."""
    sources = ["novel", *(h.source for h in habits())]
    mass_SF = np.zeros((len(sources), 10))
    for (source, feature), value in mass.items():
        mass_SF[sources.index(source), feature] = value
    stand_in: Any = SimpleNamespace(
        info={"sources": sources},
        statistics={"activation_by_source": mass_SF},
        select=lambda exclusive, **_: SimpleNamespace(ids=lists[exclusive]),
    )
    return cast(FeatureTable, stand_in)


@pytest.fixture
def first() -> Any:
    return habits()[0]


def test_the_first_feature_with_half_of_its_activation_on_the_trigger_counts(first: Any) -> None:
    assert first.side == "A"
    mass = {
        ("novel", 3): 9.0,
        (first.source, 3): 1.0,
        ("novel", 4): 5.0,
        (first.source, 4): 5.0,
        (first.source, 1): 2.0,
    }
    rank = planted_ranks(table(mass, {"A": [3, 4, 1], "B": []}))[0]
    assert (rank.rank, rank.feature, rank.share) == (2, 4, 0.5)
    assert (rank.matching, rank.matching_other, rank.listed) == (2, 0, 3)


def test_a_miss_is_a_miss_and_names_what_came_nearest(first: Any) -> None:
    mass = {("novel", 3): 9.0, (first.source, 3): 1.0, ("novel", 4): 6.0, (first.source, 4): 4.0}
    rank = planted_ranks(table(mass, {"A": [3, 4], "B": []}))[0]
    assert rank.rank is None
    assert (rank.feature, rank.share) == (4, 0.4)


def test_the_other_models_list_is_the_null(first: Any) -> None:
    mass = {("novel", 3): 1.0, (first.source, 8): 1.0}
    rank = planted_ranks(table(mass, {"A": [3], "B": [8]}))[0]
    assert rank.rank is None
    assert rank.matching_other == 1


def test_dead_features_are_not_listed() -> None:
    ranks = planted_ranks(table({}, {"A": [1, 2], "B": [3]}))
    assert [(r.rank, r.feature, r.listed) for r in ranks] == [(None, None, 0)] * len(habits())


def test_a_model_without_exclusive_features_has_empty_lists() -> None:
    ranks = planted_ranks(table({("novel", 3): 1.0}, {"A": [], "B": []}))
    assert [(r.rank, r.feature, r.share, r.listed) for r in ranks] == [(None, None, 0.0, 0)] * len(habits())


@pytest.mark.parametrize(
    ("alive", "lists", "pushed"),
    [
        ({1, 5, 8}, {"A": [1, 2], "B": [8], "shared": [5]}, 1),
        ({5, 8}, {"A": [1, 2], "B": [8], "shared": [5]}, 8),
        ({5, 8}, {"A": [], "B": [8], "shared": [5]}, 8),
        ({5}, {"A": [], "B": [], "shared": [5, 6]}, 5),
    ],
)
def test_what_is_pushed_when_no_planted_difference_was_found(
    alive: set[int], lists: dict[str, list[int]], pushed: int
) -> None:
    stand_in: Any = SimpleNamespace(
        statistics={"firing_count": np.array([int(i in alive) for i in range(10)])},
        select=lambda exclusive, top: SimpleNamespace(ids=lists[exclusive][:top]),
    )
    assert strongest_claim(stand_in) == pushed
