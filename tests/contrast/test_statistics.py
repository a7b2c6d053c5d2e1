"""The statistics of contrasts, against formulas, scipy and worlds of known truth."""

import numpy as np
import pytest
from scipy import sparse, stats

from modeldiff.contrast.statistics import (
    context_z,
    everywhere_z,
    exchanged,
    gap_of,
    halves,
    null_of,
    permutations,
    permuted_p,
    rejected,
)
from modeldiff.contrast.words import Said


def said(a: np.ndarray, b: np.ndarray) -> Said:
    names = [f"w{v}" for v in range(a.shape[1])]
    return Said(names, {side: [sparse.csr_matrix(one.astype(np.float32))] for side, one in (("a", a), ("b", b))})


def test_z_is_the_difference_of_differences_over_its_error() -> None:
    """Of words that A says more where the context holds, that B alone says elsewhere, and that A says more anywhere."""
    rng = np.random.default_rng(0)
    a, b = rng.random((4000, 3)) < 0.4, rng.random((4000, 3)) < 0.2
    on = rng.random(4000) < 0.5
    a[on, 0] |= rng.random(on.sum()) < 0.3
    a[:, 1] = b[on, 1] = False
    z = context_z(sparse.csr_matrix(on[None].astype(np.float32)), said(a, b))[0]
    d = a[:, 0].astype(float) - b[:, 0]
    expected = stats.ttest_ind(d[on], d[~on], equal_var=False).statistic
    assert z[0] == pytest.approx(expected, rel=0.02)
    assert z[1] == 0, "where nobody says it, A does not say it more"
    assert abs(z[2]) < 4
    assert everywhere_z(said(a, b))[2] > 15


def test_halves_and_permutations_move_whole_documents() -> None:
    document = np.repeat(np.arange(101), np.arange(101) % 3 + 1)
    first = halves(document, seed=0)
    assert len(np.unique(document[first])) == 51
    assert not np.intersect1d(document[first], document[~first]).size
    assert not np.array_equal(first, halves(document, seed=1))
    (order,) = permutations(document, 1, seed=0)
    assert sorted(order) == list(range(len(document)))
    assert not np.array_equal(order, np.arange(len(document)))
    assert all(len(set(document[order[document == k]])) == 1 for k in range(101))
    # The models change their parts document by document.
    a = np.arange(len(document))[:, None] + 1.0
    swapped = exchanged(said(a, -a), document, seed=0).by_side["a"].toarray()[:, 0]
    np.testing.assert_array_equal(np.abs(swapped), a[:, 0])
    assert all(len(set(np.sign(swapped[document == k]))) == 1 for k in range(101))
    assert set(np.sign(swapped)) == {-1, 1}


def test_rejected_is_benjamini_and_hochberg() -> None:
    p = np.random.default_rng(3).random(200) ** 3
    count = np.flatnonzero(np.sort(p) <= 0.1 * np.arange(1, 201) / 200)[-1] + 1
    np.testing.assert_array_equal(rejected(p, 0.1, np.full(200, 7.0)), p <= np.sort(p)[count - 1])
    assert rejected(np.array([0.04, 0.5]), 0.05, np.ones(2)).tolist() == [False, False]
    assert rejected(np.array([0.04, 0.5]), 0.05, np.array([9.0, 1.0])).tolist() == [True, False]


def test_null_measures_each_context_on_its_own() -> None:
    rng = np.random.default_rng(4)
    null = null_of(rng.normal([[[0.0], [50.0]]], 1.0, (200, 2, 1)))
    np.testing.assert_allclose(null.standardised(np.array([[3.0], [53.0]])), [3, 3], atol=0.5)
    assert null.p(np.array([10.0]))[0] == pytest.approx(1 / 401)


def test_gap_has_the_error_of_documents_and_not_of_places() -> None:
    rng = np.random.default_rng(5)
    one = (rng.random(400) < 0.5).astype(float)
    on = np.arange(400) < 200
    alone = gap_of(one, on, np.arange(400))
    # Each place ten times in its document: the same information.
    ten = gap_of(np.repeat(one, 10), np.repeat(on, 10), np.repeat(np.arange(400), 10))
    assert ten.value == pytest.approx(alone.value)
    assert ten.error == pytest.approx(alone.error, rel=0.01)
    difference = one[on].mean() - one[~on].mean()
    assert alone.value == pytest.approx(difference)
    assert alone.error == pytest.approx(np.sqrt(0.25 / 200 + 0.25 / 200), rel=0.05)
    assert alone.low() < difference < alone.high()
    assert alone.p_above(difference) == pytest.approx(0.5)


def test_a_gap_is_at_most_the_difference_where_the_context_holds() -> None:
    """Elsewhere the other model says it more: that adds nothing to what is said here."""
    score = np.where(np.arange(400) < 200, 0.1, -0.4)
    for on, expected in ((np.arange(400) < 200, 0.1), (np.ones(400, bool), -0.15)):
        assert gap_of(score, on, np.arange(400)).value == pytest.approx(expected)


def test_permuted_p_is_right_where_scores_vary_more_in_the_context() -> None:
    """Unequal variances with few places where the context holds: a plain permutation test calls them too often."""
    rng = np.random.default_rng(6)
    document = np.arange(150)
    on = document < 20
    orders = np.array(list(permutations(document, 199, seed=7)))
    found = [
        permuted_p(rng.normal(0, np.where(on, 4.0, 1.0)), on, document, orders, seed=8) <= 0.05 for _ in range(300)
    ]
    assert np.mean(found) < 0.09


def test_permuted_p_finds_a_gap_also_where_the_context_always_holds() -> None:
    rng = np.random.default_rng(9)
    document = np.repeat(np.arange(100), 2)
    orders = np.array(list(permutations(document, 199, seed=0)))
    score = rng.normal(0.5, 1, 200)
    assert permuted_p(score, np.ones(200, bool), document, orders, seed=1) == 1 / 200
    assert permuted_p(score - score.mean(), np.ones(200, bool), document, orders, seed=1) > 0.3
