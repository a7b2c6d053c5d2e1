"""Twins: features of another partition that fire on the same places.

The exclusive partitions hold many concepts twice (paper 9.4). Pearson correlation of the activations over aligned
pairs finds the doubles without a judge. An F x F matrix never exists: codes are sparse, and features go through in
blocks.

Legend: N pairs of the sample, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.features.correlation import Columns, correlations, products

PER_FEATURE = 3
"""Twins kept for each feature."""
STRONG = 0.7
"""From this correlation on, twins share half of their variance: probably one concept that is there twice."""


@dataclass(frozen=True)
class Twins:
    """For each feature, the features of other partitions with the highest positive correlation, highest first."""

    feature: NDArray[np.int32]
    """(F, PER_FEATURE); -1 where there is none."""
    correlation: NDArray[np.float32]
    """(F, PER_FEATURE); 0 where there is none."""


def find_twins(codes_NF: sparse.csr_matrix, partition_F: NDArray[np.int64]) -> Twins:
    """Twins of all features, exact on the given pairs.

    Features that never fire in the sample, or fire equally on every pair, have none. Twins within a partition are not
    looked for: two shared features that fire together say nothing about the difference between the models. Features
    that never fire on the same pair have a correlation of at most 0 and cannot be twins.

    Args:
        codes_NF: activations.
        partition_F: a number per feature, the same for features of one partition.
    """
    n, n_features = codes_NF.shape
    twins = Twins(np.full((n_features, PER_FEATURE), -1, np.int32), np.zeros((n_features, PER_FEATURE), np.float32))
    if not n or not codes_NF.nnz:
        return twins
    columns = Columns.of(codes_NF)
    with progress("features: twins", n_features, "features") as bar:
        for block in products(columns, columns):
            entries = block.where(partition_F[block.one] != partition_F[block.other])
            _keep_best(twins, entries.one, entries.other, correlations(columns, columns, entries))
            bar.advance(block.features)
    return twins


def _keep_best(
    twins: Twins, one: NDArray[np.int64], other: NDArray[np.int64], correlation: NDArray[np.float64]
) -> None:
    positive = correlation > 0
    one, other, correlation = one[positive], other[positive], correlation[positive]
    order = np.lexsort((other, -correlation, one))
    one, other, correlation = one[order], other[order], correlation[order]
    rank = np.arange(len(one)) - np.searchsorted(one, one, side="left")
    best = rank < PER_FEATURE
    twins.feature[one[best], rank[best]] = other[best]
    # Rounding may carry a perfect twin past 1.
    twins.correlation[one[best], rank[best]] = np.minimum(correlation[best], 1.0)
