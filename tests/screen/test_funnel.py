"""The funnel on made evidence: what each step leaves out, what is counted as unknown, and the order of the rest."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.screen.funnel import Evidence, Limits, fold, rank_score, run_funnel, share_of_reference

LIMITS = Limits(
    least_firings=60, most_density=0.1, most_predictable=0.8, twin=0.7, least_asymmetry=0.5, most_surface=0.6
)


def evidence(n: int = 4, **changed: Any) -> Evidence:
    """`n` features that pass every step alike; `changed` replaces columns."""
    made = Evidence(
        candidate_F=np.ones(n, bool),
        firings_F=np.full(n, 100),
        density_F=np.full(n, 0.01),
        own_F=np.full(n, 0.5),
        other_F=np.full(n, 0.1),
        reference=0.8,
        twin_F=np.zeros(n),
        per_firing_F=np.ones(n),
        asymmetry_F=np.full(n, 0.9),
        surface_F=np.full(n, 0.2),
    )
    return dataclasses.replace(made, **{name: np.asarray(value) for name, value in changed.items()})


def test_what_passes_every_step_is_ranked_by_number_when_all_else_is_equal() -> None:
    funnel = run_funnel(evidence(), LIMITS)
    assert funnel.ranked == [0, 1, 2, 3]
    assert [step.left for step in funnel.steps] == [4] * 7


@pytest.mark.parametrize(
    ("column", "values", "step"),
    [
        ("candidate_F", [False, True, True, True], 0),
        ("firings_F", [59, 60, 100, 100], 1),
        ("density_F", [0.11, 0.1, 0.05, 0.0], 2),
        ("other_F", [0.33, 0.1, 0.1, 0.1], 3),
        ("twin_F", [0.7, 0.69, 0.0, 0.0], 4),
        ("asymmetry_F", [0.49, 0.5, 0.9, 0.9], 5),
        ("surface_F", [0.6, 0.59, 0.2, 0.2], 6),
    ],
)
def test_each_step_leaves_out_what_fails_it_and_no_other(column: str, values: list[Any], step: int) -> None:
    funnel = run_funnel(evidence(**{column: values}), LIMITS)
    assert sorted(funnel.ranked) == [1, 2, 3]
    assert [one.left for one in funnel.steps] == [4] * step + [3] * (7 - step)


@pytest.mark.parametrize(("column", "step"), [("own_F", 3), ("asymmetry_F", 5), ("surface_F", 6)])
def test_what_was_not_measured_is_left_out_and_counted_as_unknown(column: str, step: int) -> None:
    values = np.array([np.nan, *getattr(evidence(3), column)])
    funnel = run_funnel(evidence(**{column: values}), LIMITS)
    assert sorted(funnel.ranked) == [1, 2, 3]
    assert [one.unknown for one in funnel.steps] == [int(number == step) for number in range(7)]


def test_a_model_against_itself_leaves_nothing() -> None:
    """Both models explain every feature alike, and mind its removal alike: either step alone empties the list."""
    alike = evidence(other_F=[0.5] * 4, asymmetry_F=[0.0] * 4, reference=1.0)
    assert run_funnel(alike, LIMITS).ranked == []
    assert run_funnel(dataclasses.replace(alike, asymmetry_F=np.full(4, 0.9)), LIMITS).ranked == []
    assert run_funnel(dataclasses.replace(alike, other_F=np.full(4, 0.1)), LIMITS).ranked == []


def test_the_score_is_the_product_of_its_four_parts() -> None:
    made = evidence(1, per_firing_F=[3.0], asymmetry_F=[0.8], own_F=[0.5], other_F=[0.1], surface_F=[0.25])
    # R² other / own is 0.2, a quarter of the reference of 0.8.
    assert share_of_reference(made)[0] == pytest.approx(0.25)
    assert rank_score(made)[0] == pytest.approx(3.0 * 0.8 * 0.75 * 0.75)


def test_a_negative_r2_of_the_other_model_counts_as_nothing() -> None:
    made = evidence(2, other_F=[-0.4, 0.0])
    assert share_of_reference(made).tolist() == [0.0, 0.0]


def test_a_feature_that_its_own_model_does_not_explain_is_unknown() -> None:
    assert np.isnan(share_of_reference(evidence(2, own_F=[0.0, -0.1]))).all()


@pytest.mark.parametrize(
    ("column", "better", "worse"),
    [("per_firing_F", 2.0, 1.0), ("asymmetry_F", 0.9, 0.6), ("other_F", 0.05, 0.2), ("surface_F", 0.1, 0.5)],
)
def test_more_of_each_evidence_ranks_higher(column: str, better: float, worse: float) -> None:
    assert run_funnel(evidence(2, **{column: [worse, better]}), LIMITS).ranked == [1, 0]


def test_doubles_are_folded_into_the_one_above_and_make_room() -> None:
    twins = {5: {7: 0.9}, 7: {5: 0.9}, 8: {5: 0.3}}
    assert fold([5, 7, 8, 9], twins, 0.7, top=3) == {7: 5}
    assert fold([5, 7, 8, 9], twins, 0.95, top=3) == {}
    assert fold([7, 5, 8, 9], {5: {7: 0.9}}, 0.7, top=1) == {5: 7}, "one direction is enough"


@given(st.lists(st.integers(0, 30), unique=True, max_size=12), st.integers(1, 5), st.randoms())
def test_folding_never_folds_a_head_and_only_into_what_stands_above(ranked: list[int], top: int, random: Any) -> None:
    twins = {i: {j: random.random() for j in ranked if j != i} for i in ranked}
    folded = fold(ranked, twins, 0.8, top)
    for double, head in folded.items():
        assert head not in folded
        assert ranked.index(head) < ranked.index(double)
