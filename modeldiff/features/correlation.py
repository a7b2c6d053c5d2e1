"""Pearson correlations between the columns of sparse codes. A dense features x features array never exists.

Only features that fire on a common pair come out of a sparse product; all others have a correlation of at most 0, for
activations are never negative.

Legend: N pairs, F features, E entries of a block of products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

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
    """Sums over the pairs of f_i g_j, for the features i of a block and all features j that vary and meet them."""

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
