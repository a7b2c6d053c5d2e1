"""How well predictions of a model's activations do on chosen pairs: R² of many subsets of the pairs in one pass.

Legend: N pairs of a block, P predictions, G subsets, D width of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import Progress
from modeldiff.errors import DamagedError
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore, Block

_BLOCK_ROWS = 1024
# Relative error of a float64 sum of squares over millions of pairs.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Prediction:
    """Something that predicts one side's activations."""

    target: str
    """"a" or "b"."""
    of: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    """From both sides' activations (N, D), raw units, float32, to the predicted ones of the target."""


def measure(
    store: ActivationStore,
    ranges: Sequence[tuple[int, int]],
    subsets: Sequence[NDArray[np.int64]],
    predictions: Sequence[Prediction],
    *,
    outlier_factor: float,
    device: torch.device,
    bar: Progress,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """R² of every prediction on every subset, from one pass over some of the pairs.

    Args:
        ranges: the rows (first, stop) of the store that are read, ascending.
        subsets: rows of the store, ascending, each at most once; those that are not in the ranges do not count.
        outlier_factor: see `within_norm`.
        device: what the predictions are computed on; not mps, which has no float64.

    Returns:
        The number of pairs of each subset (G,), and R² (predictions, G): 1 - sum of squared errors / sum of squares
        about the subset's own mean, over all dimensions together. 0: no better than the mean of these very pairs; below
        0: worse; NaN: the targets do not vary, or no pairs.

    Raises:
        DamagedError: the activations cannot be read or are not finite.
    """
    counts_G = np.zeros(len(subsets), np.int64)
    error_PG, square_PG = np.zeros((2, len(predictions), len(subsets)))
    # The targets less a constant near their mean.
    sum_PGD = [np.zeros((len(subsets), store.info.sides[one.target].width)) for one in predictions]
    mean = {side: store.mean[side].to(device) for side in SIDES}
    for first, stop in ranges:
        for block in blocks_of(store, first, stop):
            x = {side: store.read_side(side, block).to(device).float() for side in SIDES}
            keep_N = within_norm(store, x, outlier_factor).cpu().numpy()
            member_GN = _membership(subsets, store.first_row[block.shard] + block.start, keep_N)
            counts_G += np.diff(member_GN.indptr)
            for p, one in enumerate(predictions):
                y_ND = x[one.target].double()
                error_PG[p] += member_GN @ (one.of(x).double() - y_ND).square().sum(dim=1).cpu().numpy()
                centred_ND = (y_ND - mean[one.target]).cpu().numpy()
                square_PG[p] += member_GN @ np.einsum("nd,nd->n", centred_ND, centred_ND)
                sum_PGD[p] += member_GN @ centred_ND
            bar.advance(len(block))
    total_PG = square_PG - [np.square(sum_GD).sum(1) / np.maximum(1, counts_G) for sum_GD in sum_PGD]
    varies_PG = total_PG > _ROUNDING * square_PG
    return counts_G, np.where(varies_PG, 1 - error_PG / np.where(varies_PG, total_PG, 1), np.nan)


def within_norm(store: ActivationStore, x: Mapping[str, torch.Tensor], outlier_factor: float) -> torch.Tensor:
    """(N,) False for outliers: pairs whose norm, on either side, exceeds this many times the store's median (paper
    B.1.4); 0 keeps all.

    Args:
        x: by side, some of the store's activations (N, D), raw units.

    Raises:
        DamagedError: a value is not finite.
    """
    norms = {side: x[side].float().norm(dim=1) for side in SIDES}
    for side, norm_N in norms.items():
        if not norm_N.isfinite().all():
            raise DamagedError(
                f"{store.artifact.ref} holds values of model {side.upper()} that are not finite; {store.artifact.mend}"
            )
    if not 0 < outlier_factor < math.inf:
        return torch.ones_like(norms["a"], dtype=torch.bool)
    limits = {side: outlier_factor * store.info.sides[side].median_norm for side in SIDES}
    return (norms["a"] <= limits["a"]) & (norms["b"] <= limits["b"])


def blocks_of(store: ActivationStore, first: int, stop: int) -> Iterator[Block]:
    """The rows first..stop of the store as blocks, never across shards."""
    while first < stop:
        shard = int(np.searchsorted(store.first_row, first, side="right")) - 1
        end = min(stop, store.first_row[shard + 1], first + _BLOCK_ROWS)
        yield Block(shard, first - store.first_row[shard], end - store.first_row[shard])
        first = end


def _membership(subsets: Sequence[NDArray[np.int64]], first_row: int, keep_N: NDArray[np.bool_]) -> sparse.csr_matrix:
    """(G, N) float64: which of the rows from `first_row` on are in which subset, those that are not kept in none."""
    inside = []
    for rows in subsets:
        low, high = np.searchsorted(rows, (first_row, first_row + len(keep_N)))
        local = rows[low:high] - first_row
        inside.append(local[keep_N[local]])
    indptr = np.cumsum([0, *map(len, inside)])
    indices = np.concatenate([*inside, np.zeros(0, np.int64)])
    return sparse.csr_matrix((np.ones(len(indices)), indices, indptr), shape=(len(subsets), len(keep_N)))
