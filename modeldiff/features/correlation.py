"""Pearson correlations between features, and twins: features of another partition that fire on the same places.

They come in blocks: an array of all features by all never exists. The exclusive partitions hold many concepts twice
(paper 9.4); twins are found without a judge.

Legend: N pairs, F, H features of two dictionaries, G features of a block, M features of a partition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.catalogue.stored import Arrays
from modeldiff.console import progress

PER_FEATURE = 3
"""Twins kept for each feature."""
# Most entries of one block: 128 MiB.
_BLOCK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class Columns:
    """Codes with the moments of each feature."""

    codes_NF: sparse.csr_matrix
    """float64."""
    mean_F: NDArray[np.float64]
    deviation_F: NDArray[np.float64]
    """Infinite where a feature is the same on every pair, 0 or not: it correlates with nothing."""

    @classmethod
    def of(cls, codes_NF: sparse.csr_matrix) -> Self:
        """Of the codes of at least one pair."""
        codes = codes_NF.astype(np.float64)
        n = codes.shape[0]
        mean_F = np.asarray(codes.sum(axis=0)).ravel() / n
        square_F = np.asarray(codes.multiply(codes).sum(axis=0)).ravel() / n
        variance_F = square_F - mean_F**2
        # A constant feature's variance is rounding error, not exactly 0.
        return cls(codes, mean_F, np.sqrt(np.where(variance_F > 1e-12 * square_F, variance_F, np.inf)))

    @property
    def n_features(self) -> int:
        return int(self.codes_NF.shape[1])


def correlations(
    one: Columns, other: Columns, features: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """(some of the `features` of `one` (G,), their correlations with all features of `other` on the same pairs (G, H)),
    block by block. Rounding may carry a perfect one past 1."""
    step = max(1, _BLOCK_ENTRIES // max(1, other.n_features))
    by_feature = one.codes_NF.tocsc()
    for start in range(0, len(features), step):
        block_G = features[start : start + step]
        correlation_GH = (by_feature[:, block_G].T.tocsr() @ other.codes_NF).toarray()
        correlation_GH /= one.codes_NF.shape[0]
        correlation_GH -= np.outer(one.mean_F[block_G], other.mean_F)
        correlation_GH /= one.deviation_F[block_G, None]
        correlation_GH /= other.deviation_F
        yield block_G, correlation_GH


def find_twins(codes_NF: sparse.csr_matrix, partition_F: NDArray[np.int64]) -> Arrays:
    """For each feature, the features of other partitions with the highest positive correlation, highest first, exact on
    these pairs: `feature` (int32; -1: there is none) and `correlation` (float32), both (F, PER_FEATURE).
    `partition_F`: the same number for features of one partition.

    Features that never fire in the sample, or fire equally on every pair, have none. Twins within a partition are not
    looked for: two shared features that fire together say nothing about the difference between the models.
    """
    n, n_features = codes_NF.shape
    shape = (n_features, PER_FEATURE)
    twins: Arrays = {"feature": np.full(shape, -1, np.int32), "correlation": np.zeros(shape, np.float32)}
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
    twins: Arrays, one_G: NDArray[np.int64], other_M: NDArray[np.int64], correlation_GM: NDArray[np.float64]
) -> None:
    """Give the features `one_G` better twins out of `other_M`, if there are; of equals, that of the lowest number."""
    places = min(PER_FEATURE, len(other_M))
    if not places:
        return
    held_G3 = twins["correlation"][one_G]
    least_G = np.partition(correlation_GM, len(other_M) - places, axis=1)[:, len(other_M) - places]
    g, m = np.nonzero(correlation_GM >= np.maximum(least_G, np.finfo(np.float64).tiny)[:, None])
    held_g, held_place = np.nonzero(held_G3 > 0)
    g = np.concatenate([held_g, g])
    other = np.concatenate([twins["feature"][one_G][held_g, held_place], other_M[m]])
    # Rounding may carry a perfect twin past 1.
    correlation = np.concatenate([held_G3[held_g, held_place], np.minimum(correlation_GM[g[len(held_g) :], m], 1.0)])
    order = np.lexsort((other, -correlation, g))
    g, other, correlation = g[order], other[order], correlation[order]
    rank = np.arange(len(g)) - np.searchsorted(g, g, side="left")
    best = rank < PER_FEATURE
    twins["feature"][one_G[g[best]], rank[best]] = other[best]
    twins["correlation"][one_G[g[best]], rank[best]] = correlation[best]
