"""Pearson correlations between the columns of sparse codes, in blocks: an array of all features by all never exists.

Legend: N pairs, F, G features of two dictionaries, B features of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

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
        """F."""
        return int(self.codes_NF.shape[1])

    def shifted(self, rows: int) -> Self:
        """The same with the pairs moved on by so many rows, the last ones to the front."""
        order_N = np.roll(np.arange(self.codes_NF.shape[0]), rows)
        return replace(self, codes_NF=self.codes_NF[order_N])


def correlations(
    one: Columns, other: Columns, features: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """(some of the `features` of `one` (B,), their correlations with all features of `other` on the same pairs (B, G)),
    block by block. Rounding may carry a perfect one past 1."""
    step = max(1, _BLOCK_ENTRIES // max(1, other.n_features))
    by_feature = one.codes_NF.tocsc()
    for start in range(0, len(features), step):
        block_B = features[start : start + step]
        correlation_BG = (by_feature[:, block_B].T.tocsr() @ other.codes_NF).toarray()
        correlation_BG /= one.codes_NF.shape[0]
        correlation_BG -= np.outer(one.mean_F[block_B], other.mean_F)
        correlation_BG /= one.deviation_F[block_B, None]
        correlation_BG /= other.deviation_F
        yield block_B, correlation_BG
