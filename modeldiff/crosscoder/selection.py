"""Which features are active: BatchTopK over a whole batch in training, a threshold at inference.

BatchTopK (paper 2.2, 12.4) keeps the k * B largest scores of the flattened batch, over the whole dictionary jointly.
The score is the activation times a weight per feature; the value kept is the activation itself.

Legend: B pairs, F features, K number of kept entries (k * B).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from modeldiff.crosscoder.model import Crosscoder

# Of the public code (paper 2.3): the threshold is a moving average with this memory, here shortened in short runs.
EMA_BETA = 0.999
# Rows looked at to guess a bound that leaves few candidates, and how many more candidates than K the guess aims at.
# With 64 rows and 1.3 the guess falls short about never; when it does, the selection is still exact, only slower.
_SAMPLE_ROWS = 64
_MARGIN = 1.3


@torch.no_grad()
def score_weights(crosscoder: Crosscoder) -> torch.Tensor | None:
    """s_F, by which activations are multiplied to rank them; None stands for ones.

    activation: 1. l2: norm of the concatenated decoder. sum: ‖d_a‖ + ‖d_b‖, the public code's rule, which gives a
    feature of one model half the weight of a shared one. mean: mean of the norms over the sides that the feature has.
    """
    selection = crosscoder.config.selection
    if selection == "activation":
        return None
    norms = crosscoder.decoder_norms()
    if selection == "l2":
        return torch.hypot(norms["a"], norms["b"])
    total_F = norms["a"] + norms["b"]
    if selection == "mean":
        total_F[crosscoder.slices["shared"]] /= 2
    return total_F


@torch.no_grad()
def batch_topk(score_BF: torch.Tensor, count: int) -> torch.Tensor:
    """Flat indices, ascending, of the `count` largest positive scores; of all positive ones if there are fewer.

    Exact: of scores equal to the smallest kept one, those with the lowest index are kept.
    """
    flat = score_BF.reshape(-1)
    if count <= 0:
        return torch.zeros(0, dtype=torch.long, device=flat.device)
    indices = _where_above(flat, _bound(score_BF, count))
    if len(indices) < count:
        indices = _where_above(flat, 0.0)
    if len(indices) <= count:
        return indices
    values = flat[indices]
    smallest = values.kthvalue(len(values) - count + 1).values
    keep = values > smallest
    ties = (values == smallest).nonzero()[:, 0]
    keep[ties[: count - int(keep.sum())]] = True
    return indices[keep]


def _bound(score_BF: torch.Tensor, count: int) -> float:
    """A guess, from evenly spaced rows, of a score that somewhat more than `count` scores exceed; never negative.

    It takes nothing from earlier batches: a resumed run makes the same guesses.
    """
    rows = len(score_BF)
    sample = score_BF[:: max(1, rows // _SAMPLE_ROWS)]
    wanted = int(_MARGIN * count * len(sample) / rows) + 1
    positive = sample[sample > 0]
    if wanted >= len(positive):
        return 0.0
    return float(positive.kthvalue(len(positive) - wanted + 1).values)


def _where_above(flat: torch.Tensor, bound: float) -> torch.Tensor:
    above = flat > bound
    if flat.device.type == "cpu":
        # Three times as fast as torch.nonzero there.
        return torch.from_numpy(np.flatnonzero(above.numpy()))
    return above.nonzero()[:, 0]


class ThresholdAverage:
    """Moving average, without bias from its start, of the smallest kept score of each batch: the inference threshold.

    Args:
        window: number of batches it remembers; `1 / (1 - EMA_BETA)` or fewer.
    """

    def __init__(self, window: float) -> None:
        self.beta = 1 - 1 / max(1.0, min(window, 1 / (1 - EMA_BETA)))
        self.total = 0.0
        self.weight = 0.0

    def update(self, smallest_kept: float) -> None:
        """Take in one batch's smallest kept score."""
        self.total = self.beta * self.total + (1 - self.beta) * smallest_kept
        self.weight = self.beta * self.weight + (1 - self.beta)

    @property
    def value(self) -> float:
        """The threshold; 0 before the first update."""
        return self.total / self.weight if self.weight else 0.0
