"""Statistics are those of the rows as stored."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modeldiff.harvest.store import QUANTILES, Rows, RunningStatistics, _quantile, combine


def save(folder: Path, shard: int, x_ND: torch.Tensor) -> None:
    statistics = RunningStatistics(x_ND.shape[1])
    statistics.add(Rows.of(x_ND))
    statistics.save(folder, shard, "a", np.full((2, 32), shard, np.uint8))


def test_against_numpy(tmp_path: Path) -> None:
    x_ND = (torch.randn(10_000, 6, generator=torch.Generator().manual_seed(0)) * 40 + 3).to(torch.bfloat16)
    for shard, rows in enumerate(x_ND.split([4000, 5999, 1])):
        save(tmp_path, shard, rows)
    mean_D, quantiles, digests = combine(tmp_path, 3, "a")
    assert [one[0, 0] for one in digests.values()] == [0, 1, 2]
    exact = x_ND.double().numpy()
    norms = np.linalg.norm(exact, axis=1)
    assert mean_D.dtype == np.float64
    np.testing.assert_allclose(mean_D, exact.mean(axis=0), rtol=1e-12)
    for quantile, value in quantiles.items():
        np.testing.assert_allclose(value, np.quantile(norms, float(quantile)), rtol=1e-6)


@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(min_value=0, max_value=2.0**127, width=32)))
def test_quantiles_as_numpy(numbers: np.ndarray) -> None:
    found = [_quantile(np.sort(numbers), float(quantile)) for quantile in QUANTILES]
    wanted = np.quantile(numbers.astype(np.float64), [float(quantile) for quantile in QUANTILES])
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_the_mean_does_not_drift_in_many_rows_of_low_precision(tmp_path: Path) -> None:
    # A bfloat16 sum of ones stops growing at 256.
    save(tmp_path, 0, torch.ones(50_000, 2, dtype=torch.bfloat16))
    mean_D, quantiles, _ = combine(tmp_path, 1, "a")
    assert mean_D.tolist() == [1.0, 1.0]
    assert abs(quantiles["0.5"] - 2**0.5) < 1e-7
