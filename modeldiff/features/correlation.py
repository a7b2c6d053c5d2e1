"""Pearson correlations between features, and twins: features of another partition that fire on the same places.

A dense features x features array never exists. Only features that fire on a common pair come out of a sparse product;
all others have a correlation of at most 0, for activations are never negative. The exclusive partitions hold many
concepts twice (paper 9.4); twins are found without a judge.

Legend: N pairs, F features, E entries of a block of products, G and M features of two partitions, of a block and all of
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress

PER_FEATURE = 3
"""Twins kept for each feature."""
STRONG = 0.7
"""From this correlation on, twins share half of their variance: probably one concept that is there twice."""
# Most entries of one block of products: 12 bytes each in a sparse matrix.
_BLOCK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class Columns:
    """Codes with the moments of each feature."""

    codes_NF: sparse.csr_matrix
    """float64."""
    mean_F: NDArray[np.float64]
    deviation_F: NDArray[np.float64]
    """1 where the feature does not vary."""
    varies_F: NDArray[np.bool_]
    """False where a feature is the same on every pair, 0 or not: it correlates with nothing."""

    @classmethod
    def of(cls, codes_NF: sparse.csr_matrix) -> Self:
        """Of the codes of at least one pair."""
        codes = codes_NF.astype(np.float64)
        n = codes.shape[0]
        mean_F = np.asarray(codes.sum(axis=0)).ravel() / n
        square_F = np.asarray(codes.multiply(codes).sum(axis=0)).ravel() / n
        variance_F = square_F - mean_F**2
        # A constant feature's variance is rounding error, not exactly 0.
        varies_F = variance_F > 1e-12 * square_F
        return cls(codes, mean_F, np.sqrt(np.where(varies_F, variance_F, 1.0)), varies_F)

    @property
    def n_features(self) -> int:
        """F."""
        return int(self.codes_NF.shape[1])

    def shifted(self, rows: int) -> Self:
        """The same with the pairs moved on by so many rows, the last ones to the front."""
        order_N = np.roll(np.arange(self.codes_NF.shape[0]), rows)
        return replace(self, codes_NF=self.codes_NF[order_N])


@dataclass(frozen=True)
class Products:
    """Sums over the pairs of f_i g_j, for the features i of a block and all features j that vary and fire with them."""

    features: int
    """Number of features i of the block."""
    one: NDArray[np.int64]
    """(E,) the feature i."""
    other: NDArray[np.int64]
    """(E,) the feature j."""
    total: NDArray[np.float64]
    """(E,) the sum."""

    def where(self, wanted_E: NDArray[np.bool_]) -> Products:
        """Only some of the entries."""
        return replace(self, one=self.one[wanted_E], other=self.other[wanted_E], total=self.total[wanted_E])


def blocks(features: NDArray[np.int64], others: int) -> Iterator[NDArray[np.int64]]:
    """The features in blocks whose products with `others` features are not too many for one array."""
    step = max(1, _BLOCK_ENTRIES // max(1, others))
    for start in range(0, len(features), step):
        yield features[start : start + step]


def products(one: Columns, other: Columns, features: NDArray[np.int64] | None = None) -> Iterator[Products]:
    """The products of `features` of `one` (None: all), in blocks, with all features of `other` on the same pairs."""
    features = np.arange(one.n_features) if features is None else features
    columns = one.codes_NF.tocsc()
    for block in blocks(features, other.n_features):
        product = (columns[:, block].T.tocsr() @ other.codes_NF).tocoo()
        found = Products(len(block), block[product.row], product.col, product.data)
        yield found.where(one.varies_F[found.one] & other.varies_F[found.other])


def correlations(one: Columns, other: Columns, entries: Products) -> NDArray[np.float64]:
    """(E,) the Pearson correlation of each entry; rounding may carry a perfect one past 1."""
    i, j = entries.one, entries.other
    covariance = entries.total / one.codes_NF.shape[0] - one.mean_F[i] * other.mean_F[j]
    return covariance / (one.deviation_F[i] * other.deviation_F[j])


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
    looked for: two shared features that fire together say nothing about the difference between the models.

    Args:
        codes_NF: activations.
        partition_F: a number per feature, the same for features of one partition.
    """
    n, n_features = codes_NF.shape
    twins = Twins(np.full((n_features, PER_FEATURE), -1, np.int32), np.zeros((n_features, PER_FEATURE), np.float32))
    if not n or not codes_NF.nnz:
        return twins
    columns = Columns.of(codes_NF)
    by_feature = columns.codes_NF.tocsc()
    # A feature that does not vary correlates with nothing.
    deviation_F = np.where(columns.varies_F, columns.deviation_F, np.inf)
    parts = [np.flatnonzero(partition_F == number) for number in np.unique(partition_F)]
    parts.sort(key=len)
    # Every product serves both of its features; those of the largest partition are never multiplied by each other.
    with progress("features: twins", sum(map(len, parts[:-1])), "features") as bar:
        for place, part in enumerate(parts[:-1]):
            for part_G in blocks(part, n_features):
                correlation_GF = (by_feature[:, part_G].T.tocsr() @ columns.codes_NF).toarray()
                correlation_GF /= n
                correlation_GF -= np.outer(columns.mean_F[part_G], columns.mean_F)
                correlation_GF /= deviation_F[part_G, None]
                correlation_GF /= deviation_F
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
