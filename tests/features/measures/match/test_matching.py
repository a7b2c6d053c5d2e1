"""Matches between dictionaries on codes with known answers, correlations against numpy.corrcoef."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

import modeldiff.features.correlation as correlation_module
from modeldiff.features.correlation import Columns
from modeldiff.features.measures.match.matching import Dictionary, Matches, decoder_cosines, match
from modeldiff.features.measures.match.summary import summarise
from tests.features.made_crosscoder import N_A, N_SHARED, made_crosscoder

PARTITION_F = np.repeat([0, 1, 2], [4, 6, 5]).astype(np.int8)


def codes(seed: int, n: int = 600, features: int = 15) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.where(generator.random((n, features)) < 0.2, generator.random((n, features)), 0).astype(np.float32)


def dictionary(f_NF: np.ndarray, partition_F: np.ndarray = PARTITION_F) -> Dictionary:
    return Dictionary(Columns.of(sparse.csr_matrix(f_NF)), partition_F)


def everything(f_NF: np.ndarray, g_NF: np.ndarray, partition_G: np.ndarray = PARTITION_F) -> Matches:
    return match(dictionary(f_NF), dictionary(g_NF, partition_G), np.arange(f_NF.shape[1]), "test")


@pytest.mark.parametrize("block_entries", [1 << 24, 30])
def test_correlations_equal_numpy(block_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation_module, "_BLOCK_ENTRIES", block_entries)
    f_NF, g_NF = codes(0), codes(1, features=11)
    g_NF[:, 3] += 0.5 * f_NF[:, 9]
    partition_G = np.repeat([0, 1, 2], [2, 6, 3]).astype(np.int8)
    found = everything(f_NF, g_NF, partition_G)
    expected_FG = np.corrcoef(f_NF.T.astype(np.float64), g_NF.T.astype(np.float64))[:15, 15:]
    np.testing.assert_array_equal(found.feature, expected_FG.argmax(axis=1))
    np.testing.assert_allclose(found.correlation, expected_FG.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.partition, partition_G[expected_FG.argmax(axis=1)])
    np.testing.assert_array_equal(found.mutual, expected_FG.argmax(axis=0)[found.feature] == np.arange(15))


def test_looking_for_some_features_answers_as_looking_for_all() -> None:
    f_NF, g_NF = codes(0), codes(1)
    some = np.array([1, 4, 12])
    found, whole = match(dictionary(f_NF), dictionary(g_NF), some, "test"), everything(f_NF, g_NF)
    for name in ("feature", "correlation", "partition", "mutual"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[some])


def test_a_dictionary_against_itself_and_the_dead() -> None:
    f_NF = codes(0)
    f_NF[:, 3] = 0
    f_NF[:, 8] = 0.7  # alike on every pair
    found = everything(f_NF, f_NF)
    living = np.setdiff1d(np.arange(15), [3, 8])
    np.testing.assert_array_equal(found.feature[living], living)
    np.testing.assert_allclose(found.correlation[living], 1)
    assert found.mutual[living].all()
    for feature in (3, 8):
        assert found.feature[feature] == -1
        assert found.correlation[feature] == 0
        assert found.partition[feature] == -1
        assert not found.mutual[feature]


def test_order_and_scale_of_the_features_do_not_matter() -> None:
    f_NF = codes(0)
    order = np.random.default_rng(5).permutation(15)
    found = everything(f_NF, f_NF[:, order] * np.linspace(0.1, 9, 15, dtype=np.float32), PARTITION_F[order])
    np.testing.assert_array_equal(order[found.feature], np.arange(15))
    np.testing.assert_allclose(found.correlation, 1, atol=1e-6)
    np.testing.assert_array_equal(found.partition, PARTITION_F)
    assert found.mutual.all()
    np.testing.assert_array_equal(found.came_back(1.0), PARTITION_F)


def test_a_feature_that_moved_to_another_partition_is_reported_there() -> None:
    f_NF = codes(0)
    g_NF = codes(1)
    g_NF[:, 6], g_NF[:, 12], g_NF[:, 2] = f_NF[:, 0], f_NF[:, 1], f_NF[:, 2]
    back = everything(f_NF, g_NF).came_back(0.7)
    assert back[:3].tolist() == [1, 2, 0]
    assert (back[3:] == -1).all()


def test_of_equal_matches_the_one_in_the_same_partition_counts() -> None:
    f_NF, g_NF = codes(0), codes(1)
    g_NF[:, 1] = g_NF[:, 7] = f_NF[:, 5]  # 5 is shared, 7 as well, 1 is not
    found = everything(f_NF, g_NF)
    assert (found.feature[5], found.partition[5], found.mutual[5]) == (7, 1, True)


def test_a_feature_that_two_claim_comes_back_as_one_of_them() -> None:
    f_NF, g_NF = codes(0), codes(1)
    f_NF[:, 1] = f_NF[:, 0] * (np.arange(600) % 10 > 0)
    g_NF[:, 2] = f_NF[:, 0]
    found = everything(f_NF, g_NF)
    assert found.feature[:2].tolist() == [2, 2]
    assert found.mutual[:2].tolist() == [True, False]
    assert found.came_back(0.7)[:2].tolist() == [0, -2]


def test_independent_dictionaries_match_no_better_than_by_chance() -> None:
    f, g = dictionary(codes(0)), dictionary(codes(1))
    found, chance = (match(f, other, np.arange(15), "test") for other in (g, g.shifted()))
    assert abs(np.median(found.correlation) - np.median(chance.correlation)) < 0.03
    assert max(found.correlation.max(), chance.correlation.max()) < 0.2
    assert (found.came_back(0.7) == -1).all()


def test_shifted_pairs_are_all_elsewhere() -> None:
    f_NF = codes(0, n=7)
    shifted = dictionary(f_NF).shifted().columns
    np.testing.assert_allclose(shifted.codes_NF.toarray(), np.roll(f_NF, 3, axis=0))


def test_cosines_of_decoder_rows_where_both_have_the_side() -> None:
    one, other = made_crosscoder(), made_crosscoder()
    with torch.no_grad():
        other.w_dec_a[N_A] += torch.eye(*other.w_dec_a.shape)[0] * 2  # turned by 45 degrees
        other.w_dec_b *= -3
    first_b = N_A + N_SHARED
    #           A -> A, A -> shared, shared -> shared, B -> B, B -> A, no match
    features = np.array([0, 0, N_A, first_b, first_b, 1])
    matches = np.array([0, N_A, N_A, first_b, 0, -1], np.int32)
    found = decoder_cosines(one, other, features, matches)
    half = 0.5**0.5
    np.testing.assert_allclose(found["a"], [1, half, half, np.nan, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [np.nan, np.nan, -1, -1, np.nan, np.nan], rtol=1e-6)


def test_the_summary_counts_alive_features_by_the_place_where_they_came_back() -> None:
    arrays = {
        "partition": np.array([0, 0, 0, 0, 2], np.int8),
        "firing_count": np.array([5, 5, 5, 0, 5]),
        "came_back": np.array([[0, 0, -1, -1, 2], [0, 1, -2, -1, 1]], np.int8),
        "chance_came_back": np.full((2, 5), -1, np.int8),
        "correlation": np.array([[1, 0.9, 0.2, 0, 0.8]] * 2, np.float32),
        "chance_correlation": np.array([[0.1, 0.1, 0.3, 0, 0.1]] * 2, np.float32),
    }
    summary = summarise(arrays, ["crosscoder:2", "crosscoder:3"])
    assert list(summary) == ["A", "B"]
    a = summary["A"]
    assert (a["features"], a["alive"], a["dead"]) == (4, 3, 1)
    assert [one["came_back"] for one in a["against"]] == [
        {"A": 2, "shared": 0, "B": 0, "one-sided": 0, "none": 1},
        {"A": 1, "shared": 1, "B": 0, "one-sided": 1, "none": 0},
    ]
    assert a["against"][0]["correlation"]["median"] == pytest.approx(0.9)
    assert a["against"][0]["chance"]["correlation"]["max"] == pytest.approx(0.3)
    assert a["against"][0]["chance"]["came_back"]["none"] == 3
    assert a["mean"]["chance"]["none"] == a["in_all"]["chance"]["none"] == 3
    mean, in_all = ({key: n for key, n in a[name].items() if key != "chance"} for name in ("mean", "in_all"))
    assert mean == {"A": 1.5, "shared": 0.5, "B": 0, "one-sided": 0.5, "none": 0.5}
    assert in_all == {"A": 1, "shared": 0, "B": 0, "one-sided": 0, "none": 0, "somewhere": 2}
    assert summary["B"]["in_all"]["somewhere"] == 1
    assert summary["B"]["in_all"]["B"] == 0
