"""Features of one dictionary in another: the best-correlated one, and whether the choice is mutual.

Legend: N pairs, F features of one dictionary, R features of the reference that are looked for, D width of one model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.console import progress
from modeldiff.crosscoder import Crosscoder
from modeldiff.features.correlation import Columns, Products, correlations, products
from modeldiff.sides import SIDES

NOWHERE = -1
"""In place of a feature's or a partition's number: there is none."""
ONE_SIDED = -2
"""In place of the partition where a feature came back: its match correlates enough, but prefers another feature."""
# Correlations that agree to so many decimals are equal: two features that fire on one and the same pair both
# correlate perfectly with a third one, up to rounding.
_DECIMALS = 6


@dataclass(frozen=True)
class Dictionary:
    """One crosscoder's codes of the common pairs."""

    columns: Columns
    partition_F: NDArray[np.int8]
    """0, 1, 2 for A, shared, B."""

    def shifted(self) -> Self:
        """The same with the pairs permuted: moved on by half of them, so that texts meet other texts."""
        return replace(self, columns=self.columns.shifted(self.columns.codes_NF.shape[0] // 2))


@dataclass(frozen=True)
class Matches:
    """For each feature that is looked for, what it found in the other dictionary."""

    feature: NDArray[np.int32]
    """(R,) the best-correlated feature of any partition; -1 when none correlates positively."""
    correlation: NDArray[np.float32]
    """(R,) to six decimals; 0 where there is none."""
    partition: NDArray[np.int8]
    """(R,) of the match; -1 where there is none."""
    mutual: NDArray[np.bool_]
    """(R,) the match, looked for among all features of the reference, finds this one."""

    def came_back(self, threshold: float) -> NDArray[np.int8]:
        """(R,) partition of the matches that correlate at least `threshold` and are mutual; -2 for those that are not
        mutual, -1 for what correlates less."""
        enough = np.round(self.correlation.astype(np.float64), _DECIMALS) >= threshold
        found = np.where(self.mutual, self.partition, ONE_SIDED)
        return np.where(enough, found, NOWHERE).astype(np.int8)


def match(reference: Dictionary, other: Dictionary, features_R: NDArray[np.int64], label: str) -> Matches:
    """The best match of each of the reference's `features_R`, exact on the common pairs.

    Of matches that correlate equally one in the same partition counts, then the one with the lowest number.

    Args:
        features_R: ascending.
        label: what the progress bar says.
    """
    found_R, correlation_R = _best(reference, other, features_R, label)
    partition_R = np.where(found_R >= 0, other.partition_F[found_R], NOWHERE).astype(np.int8)
    candidates = np.unique(found_R[found_R >= 0])
    back = np.full(other.columns.n_features, NOWHERE)
    back[candidates] = _best(other, reference, candidates, f"{label}, and back")[0]
    mutual_R = (found_R >= 0) & (back[found_R] == features_R)
    return Matches(found_R.astype(np.int32), correlation_R.astype(np.float32), partition_R, mutual_R)


def _best(
    one: Dictionary, other: Dictionary, features_R: NDArray[np.int64], label: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    feature_F = np.full(one.columns.n_features, NOWHERE)
    correlation_F = np.zeros(one.columns.n_features)
    with progress(label, len(features_R), "features") as bar:
        for block in products(one.columns, other.columns, features_R):
            entries, correlation = _strongest(one, other, block)
            elsewhere = one.partition_F[entries.one] != other.partition_F[entries.other]
            order = np.lexsort((entries.other, elsewhere, entries.one))
            i, first = np.unique(entries.one[order], return_index=True)
            feature_F[i] = entries.other[order][first]
            correlation_F[i] = correlation[order][first]
            bar.advance(block.features)
    return feature_F[features_R], correlation_F[features_R]


def _strongest(one: Dictionary, other: Dictionary, block: Products) -> tuple[Products, NDArray[np.float64]]:
    """The entries whose correlation is positive and, up to rounding, the highest of their feature."""
    correlation = np.round(correlations(one.columns, other.columns, block), _DECIMALS)
    highest_F = np.zeros(one.columns.n_features)
    np.maximum.at(highest_F, block.one, correlation)
    strongest = (correlation > 0) & (correlation == highest_F[block.one])
    return block.where(strongest), correlation[strongest]


def decoder_cosines(
    reference: Crosscoder, other: Crosscoder, features_R: NDArray[np.int64], match_R: NDArray[np.int32]
) -> dict[str, NDArray[np.float32]]:
    """Cosine of a feature's decoder row and its match's, by side "a" and "b": (R,), NaN where one of them lacks the
    side, where a row is zero, or where there is no match. Both rows write to the same model, so they compare."""
    result = {}
    for side in SIDES:
        one_R, has_one_R = _rows(reference, side, features_R)
        other_R, has_other_R = _rows(other, side, match_R.astype(np.int64))
        both = has_one_R & has_other_R
        cosine = np.full(len(features_R), np.nan, np.float32)
        weights = [getattr(one, f"w_dec_{side}").detach().double() for one in (reference, other)]
        rows = [w[torch.from_numpy(index[both])] for w, index in zip(weights, (one_R, other_R), strict=True)]
        norms = rows[0].norm(dim=1) * rows[1].norm(dim=1)
        cosine[both] = ((rows[0] * rows[1]).sum(dim=1) / norms).numpy()
        result[side] = cosine
    return result


def _rows(
    crosscoder: Crosscoder, side: str, features_R: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Row of each feature in the side's decoder, and whether it has one."""
    seen = crosscoder.sees(side)
    return features_R - seen.start, (features_R >= seen.start) & (features_R < seen.stop) & (features_R >= 0)
