"""Twins by correlation, against numpy.corrcoef."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import modeldiff.features.correlation as correlation_module
from modeldiff.features.correlation import PER_FEATURE, find_twins

PARTITION_F = np.repeat([0, 1, 2], [4, 6, 5])


def made_codes(n: int = 400) -> np.ndarray:
    generator = np.random.default_rng(3)
    f_NF = np.where(generator.random((n, 15)) < 0.3, generator.random((n, 15)), 0).astype(np.float32)
    f_NF[:, 12] = 2 * f_NF[:, 1]  # B holds what A holds
    f_NF[:, 6] = f_NF[:, 2] * (generator.random(n) < 0.8)  # shared holds most of it
    f_NF[:, 0] = f_NF[:, 4]  # A holds a shared concept
    f_NF[:, 14] = f_NF[:, 13]  # B holds one twice: no twin, they are of one partition
    f_NF[:, 3] = 0  # dead
    f_NF[:, 8] = 0.7  # fires alike everywhere
    return f_NF


@pytest.mark.parametrize("block_entries", [1 << 24, 30])
def test_correlations_equal_numpy_and_the_best_of_other_partitions_come_first(
    block_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation_module, "_BLOCK_ENTRIES", block_entries)
    f_NF = made_codes()
    twins = find_twins(sparse.csr_matrix(f_NF), PARTITION_F)
    with np.errstate(all="ignore"):
        expected_FF = np.corrcoef(f_NF.T.astype(np.float64))
    expected_FF[PARTITION_F[:, None] == PARTITION_F[None, :]] = np.nan
    expected_FF[[3, 8]] = np.nan
    expected_FF[:, [3, 8]] = np.nan
    for feature in range(15):
        best = np.sort(expected_FF[feature][expected_FF[feature] > 0])[::-1][:PER_FEATURE]
        found = twins["correlation"][feature][twins["feature"][feature] >= 0]
        np.testing.assert_allclose(found, best, atol=1e-6)
        for other, value in zip(twins["feature"][feature], found, strict=False):
            assert expected_FF[feature, other] == pytest.approx(value, abs=1e-6)
    assert [twins["feature"][i, 0] for i in (0, 4, 1, 12, 2, 6)] == [4, 0, 12, 1, 6, 2], "from both sides"
    assert twins["correlation"][1, 0] == pytest.approx(1)
    assert 14 not in twins["feature"][13]
    assert (twins["feature"][[3, 8]] == -1).all(), "the dead and the constant have none"
