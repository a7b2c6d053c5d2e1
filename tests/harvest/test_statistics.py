"""Statistics are those of the rows as stored."""

from pathlib import Path

import numpy as np
import torch

from modeldiff.harvest.statistics import combine, save_shard_statistics


def test_against_numpy(tmp_path: Path) -> None:
    x_ND = (torch.randn(10_000, 6, generator=torch.Generator().manual_seed(0)) * 40 + 3).to(torch.bfloat16)
    for shard, rows in enumerate(x_ND.split([4000, 5999, 1])):
        save_shard_statistics(tmp_path, shard, "a", rows)
    mean_D, median, quantiles = combine(tmp_path, 3, "a")
    exact = x_ND.double().numpy()
    norms = np.linalg.norm(exact, axis=1)
    assert mean_D.dtype == np.float64
    np.testing.assert_allclose(mean_D, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(median, np.median(norms), rtol=1e-6)
    assert median == quantiles["0.5"]
    for quantile, value in quantiles.items():
        np.testing.assert_allclose(value, np.quantile(norms, float(quantile)), rtol=1e-6)


def test_the_mean_does_not_drift_in_many_rows_of_low_precision(tmp_path: Path) -> None:
    # A bfloat16 sum of ones stops growing at 256.
    save_shard_statistics(tmp_path, 0, "b", torch.ones(50_000, 2, dtype=torch.bfloat16))
    mean_D, median, _ = combine(tmp_path, 1, "b")
    assert mean_D.tolist() == [1.0, 1.0]
    assert abs(median - 2**0.5) < 1e-7
