"""Features of one dictionary in another: the best-correlated one, and whether the choice is mutual.

Legend: N pairs, F features of one dictionary, B a block of them, G features of the other dictionary, R features of the
reference that are looked for, D width of one model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.catalogue.stored import Arrays
from modeldiff.console import progress
from modeldiff.crosscoder import Crosscoder
from modeldiff.features.correlation import Columns, correlations
from modeldiff.sides import SIDES

# In place of a feature's or a partition's number: there is none; there is one, but it prefers another feature.
NOWHERE, ONE_SIDED = -1, -2
# Correlations that agree to so many decimals are equal: two features that fire on one and the same pair both
# correlate perfectly with a third one, up to rounding.
_DECIMALS = 6


@dataclass(frozen=True)
class Dictionary:
    columns: Columns
    partition_F: NDArray[np.int8]
    """0, 1, 2 for A, shared, B."""


def match(
    reference: Dictionary, other: Dictionary, features_R: NDArray[np.int64], threshold: float, label: str
) -> Arrays:
    """What each of the reference's `features_R` (ascending) finds in the other dictionary, arrays (R,).

    Returns:
        match, correlation: see `best_of`; came_back: partition of a match that correlates at least `threshold`, -1
        where it correlates less, -2 where it is not mutual: looked for among all features of the reference, the match
        finds another one; chance_correlation: the best one with the pairs permuted.
    """
    found_R, correlation_R = best_of(reference, other, features_R, label)
    candidates = np.unique(found_R[found_R >= 0])
    back_F = np.full(other.columns.n_features, NOWHERE)
    back_F[candidates] = best_of(other, reference, candidates, f"{label}, and back")[0]
    mutual_R = (found_R >= 0) & (back_F[found_R] == features_R)
    where_R = np.where(mutual_R, other.partition_F[found_R], ONE_SIDED)
    # Pairs moved on by half of them, so that texts meet other texts.
    codes_NG = other.columns.codes_NF
    order_N = np.roll(np.arange(codes_NG.shape[0]), codes_NG.shape[0] // 2)
    permuted = replace(other, columns=replace(other.columns, codes_NF=codes_NG[order_N]))
    _, chance_R = best_of(reference, permuted, features_R, f"{label}, by chance")
    return {
        "match": found_R.astype(np.int32),
        "correlation": correlation_R.astype(np.float32),
        "came_back": np.where(correlation_R >= threshold, where_R, NOWHERE).astype(np.int8),
        "chance_correlation": chance_R.astype(np.float32),
    }


def best_of(
    one: Dictionary, other: Dictionary, features_R: NDArray[np.int64], label: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of `features_R` of `one`: (the feature of `other` that correlates most, -1 where none does positively;
    the correlation to six decimals, 0 where there is none), both (R,), exact on the common pairs.

    Of features that correlate equally one in the same partition counts, then the one with the lowest number.
    """
    found, highest = [np.zeros(0, np.int64)], [np.zeros(0)]
    with progress(label, len(features_R), "features") as bar:
        for block_B, correlation_BG in correlations(one.columns, other.columns, features_R):
            np.round(correlation_BG, _DECIMALS, out=correlation_BG)
            highest_B = correlation_BG.max(axis=1)
            same_BG = one.partition_F[block_B, None] == other.partition_F
            rank_BG = 2 * (correlation_BG == highest_B[:, None]).view(np.int8) + same_BG.view(np.int8)
            found.append(np.where(highest_B > 0, rank_BG.argmax(axis=1), NOWHERE))
            highest.append(highest_B.clip(min=0))
            bar.advance(len(block_B))
    return np.concatenate(found), np.concatenate(highest)


def decoder_cosines(
    reference: Crosscoder, other: Crosscoder, features_R: NDArray[np.int64], match_R: NDArray[np.int32]
) -> Arrays:
    """`cosine_a` and `cosine_b` (R,) of a feature's decoder row and its match's, NaN where one of them lacks the side,
    where a row is zero, or where there is no match. Both rows write to the same model, so they compare."""
    result = {}
    for side in SIDES:
        rows = []
        for crosscoder, feature_R in ((reference, features_R), (other, match_R)):
            seen = crosscoder.sees(side)
            inside_R = (feature_R >= max(0, seen.start)) & (feature_R < seen.stop)
            row_RD = torch.full((len(feature_R), crosscoder.decoder(side).shape[1]), torch.nan, dtype=torch.float64)
            row_RD[inside_R] = crosscoder.decoder(side).detach().double()[feature_R[inside_R] - seen.start]
            rows.append(row_RD)
        norms_R = rows[0].norm(dim=1) * rows[1].norm(dim=1)
        result[f"cosine_{side}"] = ((rows[0] * rows[1]).sum(dim=1) / norms_R).numpy().astype(np.float32)
    return result
