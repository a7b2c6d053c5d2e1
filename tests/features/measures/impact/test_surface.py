"""What the last word explains of features that are made to follow it, or not to.

Legend: N pairs, F features, K words.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from modeldiff.features.measures.impact.surface import last_word, surface_r2

N, WORDS = 20_000, 20


@pytest.mark.parametrize(
    ("text", "expected"), [("The Salt", "salt"), ("Yes,", ","), ("Yes, h", "h"), ("  ", ""), ("Ärger 東京", "東京")]
)
def test_last_word(text: str, expected: str) -> None:
    assert last_word(text) == expected


def test_features_of_one_word_of_two_of_none_and_what_fires_in_one_half_only() -> None:
    random = np.random.default_rng(0)
    word_N, fit_N = random.integers(0, WORDS, N), np.arange(N) // 50 % 2 == 0
    columns = [
        2.0 * (word_N == 3),
        3.0 * ((word_N == 5) & (np.roll(word_N, 1) == 7)),
        random.random(N) * (random.random(N) < 0.05),
        np.ones(N),
        np.zeros(N),
        (word_N == 3) & fit_N,
        (word_N == 3) & ~fit_N,
    ]
    dense = np.stack(columns, axis=1).astype(np.float32)
    found = surface_r2(sparse.csr_matrix(dense), word_N, fit_N)
    assert found[0] == pytest.approx(1, abs=0.01)
    assert (found[1:3] < [0.15, 0.01]).all()
    assert np.isnan(found[3:]).all()
    mean_KF = np.stack(
        [dense[fit_N & (word_N == k)].sum(0) / ((fit_N & (word_N == k)).sum() + 2) for k in range(WORDS)]
    )
    held = dense[~fit_N].astype(np.float64)
    residual = ((held - mean_KF[word_N[~fit_N]]) ** 2).sum(axis=0)
    expected = 1 - residual[:3] / ((held - held.mean(axis=0)) ** 2).sum(axis=0)[:3]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-4)
