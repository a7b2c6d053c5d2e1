"""Matches between dictionaries on codes with known answers, correlations against numpy.corrcoef."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

import modeldiff.features.correlation as correlation_module
from modeldiff.features.correlation import Columns
from modeldiff.features.measures.match.matching import Arrays, Dictionary, decoder_cosines, match
from tests.features.made_crosscoder import N_A, N_SHARED, made_crosscoder

PARTITION_F = np.repeat([0, 1, 2], [4, 6, 5]).astype(np.int8)


def codes(seed: int, n: int = 600, features: int = 15) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.where(generator.random((n, features)) < 0.2, generator.random((n, features)), 0).astype(np.float32)


def dictionary(f_NF: np.ndarray, partition_F: np.ndarray = PARTITION_F) -> Dictionary:
    return Dictionary(Columns.of(sparse.csr_matrix(f_NF)), partition_F)


def everything(f_NF: np.ndarray, g_NF: np.ndarray, partition_G: np.ndarray = PARTITION_F, at: float = 0.7) -> Arrays:
    return match(dictionary(f_NF), dictionary(g_NF, partition_G), np.arange(f_NF.shape[1]), at, "test")


@pytest.mark.parametrize("block_entries", [1 << 24, 30])
def test_correlations_equal_numpy(block_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation_module, "_BLOCK_ENTRIES", block_entries)
    f_NF, g_NF = codes(0), codes(1, features=11)
    g_NF[:, 3] += 0.5 * f_NF[:, 9]
    partition_G = np.repeat([0, 1, 2], [2, 6, 3]).astype(np.int8)
    found = everything(f_NF, g_NF, partition_G, at=1e-9)
    expected_FG = np.corrcoef(f_NF.T.astype(np.float64), g_NF.T.astype(np.float64))[:15, 15:]
    best_F = expected_FG.argmax(axis=1)
    np.testing.assert_array_equal(found["match"], best_F)
    np.testing.assert_allclose(found["correlation"], expected_FG.max(axis=1), atol=1e-6)
    mutual_F = expected_FG.argmax(axis=0)[best_F] == np.arange(15)
    assert set(mutual_F) == {True, False}
    np.testing.assert_array_equal(found["came_back"], np.where(mutual_F, partition_G[best_F], -2))
    permuted_FG = np.corrcoef(f_NF.T, np.roll(g_NF, 300, axis=0).T)[:15, 15:]
    np.testing.assert_allclose(found["chance_correlation"], permuted_FG.max(axis=1), atol=1e-6)


def test_where_features_went_and_which_of_equal_ones_counts() -> None:
    f_NF, g_NF = codes(0), codes(1)
    f_NF[:, 4] = f_NF[:, 3] * (np.arange(600) % 10 > 0)
    g_NF[:, 6], g_NF[:, 12], g_NF[:, 2] = f_NF[:, 0], f_NF[:, 1], f_NF[:, 2]
    g_NF[:, 10] = f_NF[:, 3]  # two claim it
    g_NF[:, 1] = g_NF[:, 7] = f_NF[:, 5]  # 5 is shared, 7 as well, 1 is not
    found = everything(f_NF, g_NF)
    assert found["came_back"][:6].tolist() == [1, 2, 0, 2, -2, 1]
    assert (found["came_back"][6:] == -1).all()
    assert found["match"][:6].tolist() == [6, 12, 2, 10, 10, 7]


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
    np.testing.assert_allclose(found["cosine_a"], [1, half, half, np.nan, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found["cosine_b"], [np.nan, np.nan, -1, -1, np.nan, np.nan], rtol=1e-6)
