"""Twins: features of another partition that fire on the same places.

The exclusive partitions hold many concepts twice (paper 9.4). Pearson correlation of the activations over aligned
pairs finds the doubles without a judge. An F x F matrix never exists: codes are sparse, and features go through in
blocks.

Legend: N pairs of the sample, F features, G and M features of two partitions, of a block and all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.features.correlation import Columns, correlations

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
    parts = [np.flatnonzero(partition_F == number) for number in np.unique(partition_F)]
    parts.sort(key=len)
    # Every product serves both of its features; those of the largest partition are never multiplied by each other.
    with progress("features: twins", sum(map(len, parts[:-1])), "features") as bar:
        for place, part in enumerate(parts[:-1]):
            for part_G, correlation_GF in correlations(columns, columns, part):
                for other in parts[place + 1 :]:
                    _keep_best(twins, part_G, other, correlation_GF[:, other])
                    _keep_best(twins, other, part_G, correlation_GF[:, other].T)
                bar.advance(len(part_G))
    return twins


def _keep_best(
    twins: Twins, one_G: NDArray[np.int64], other_M: NDArray[np.int64], correlation_GM: NDArray[np.float64]
) -> None:
    """Give the features `one_G` better twins out of `other_M`, if there are; of equals, that of the lowest number."""
    places = min(PER_FEATURE, len(other_M))
    if not places:
        return
    held_G3 = twins.correlation[one_G]
    least_G = np.partition(correlation_GM, len(other_M) - places, axis=1)[:, len(other_M) - places]
    g, m = np.nonzero(correlation_GM >= np.maximum(least_G, np.finfo(np.float64).tiny)[:, None])
    held_g, held_place = np.nonzero(held_G3 > 0)
    g = np.concatenate([held_g, g])
    other = np.concatenate([twins.feature[one_G][held_g, held_place], other_M[m]])
    # Rounding may carry a perfect twin past 1.
    correlation = np.concatenate([held_G3[held_g, held_place], np.minimum(correlation_GM[g[len(held_g) :], m], 1.0)])
    order = np.lexsort((other, -correlation, g))
    g, other, correlation = g[order], other[order], correlation[order]
    rank = np.arange(len(g)) - np.searchsorted(g, g, side="left")
    best = rank < PER_FEATURE
    twins.feature[one_G[g[best]], rank[best]] = other[best]
    twins.correlation[one_G[g[best]], rank[best]] = correlation[best]
