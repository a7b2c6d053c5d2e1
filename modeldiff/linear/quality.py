"""How well predictions of a model's activations do on pairs held out for that, and which pairs are outliers.

Legend: N pairs of a block, P predictions, D width of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.console import Progress
from modeldiff.errors import DamagedError
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore, Block

_BLOCK_ROWS = 1024
# Relative error of a float64 sum of squares over millions of pairs.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Prediction:
    target: str
    """"a" or "b"."""
    of: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    """From both sides' activations (N, D), raw units, float32, to the predicted ones of the target."""


def measure(
    store: ActivationStore,
    ranges: Sequence[tuple[int, int]],
    predictions: Sequence[Prediction],
    *,
    outlier_factor: float,
    device: torch.device,
    bar: Progress,
) -> NDArray[np.float64]:
    """R² of every prediction, from one pass over some of the pairs.

    Args:
        ranges: the rows (first, stop) of the store that are read, ascending.
        outlier_factor: see `within_norm`.
        device: what the predictions are computed on; not mps, which has no float64.

    Returns:
        (P,) 1 - sum of squared errors / sum of squares about these pairs' own mean, over all dimensions together. 0: no
        better than that mean; below 0: worse; NaN: the targets do not vary, or no pairs.

    Raises:
        DamagedError: the activations cannot be read or are not finite.
    """
    count = 0
    # Of each prediction: squared error, square, and values of the targets less a constant near their mean.
    sums = [np.zeros(2 + store.info.sides[one.target].width) for one in predictions]
    mean = {side: store.mean[side].to(device) for side in SIDES}
    for first, stop in ranges:
        for block in blocks_of(store, first, stop):
            x = {side: store.read_side(side, block).to(device).float() for side in SIDES}
            keep_N = within_norm(store, x, outlier_factor).cpu().numpy()
            count += int(keep_N.sum())
            for p, one in enumerate(predictions):
                y_ND = x[one.target].double()
                error_N = (one.of(x).double() - y_ND).square().sum(dim=1).cpu().numpy()
                centred_ND = (y_ND - mean[one.target]).cpu().numpy()
                square_N = np.einsum("nd,nd->n", centred_ND, centred_ND)
                sums[p] += np.column_stack([error_N, square_N, centred_ND])[keep_N].sum(axis=0)
            bar.advance(len(block))
    error_P, square_P = np.array([one[:2] for one in sums]).T
    total_P = square_P - [np.square(one[2:]).sum() / max(1, count) for one in sums]
    varies_P = total_P > _ROUNDING * square_P
    return np.where(varies_P, 1 - error_P / np.where(varies_P, total_P, 1), np.nan)


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
