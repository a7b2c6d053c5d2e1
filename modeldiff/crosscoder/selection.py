"""Which features are active: BatchTopK over a whole batch in training, a threshold at inference.

BatchTopK (paper 2.2, 12.4) keeps the k * B largest scores of the flattened batch, over the whole dictionary jointly.
The score is the activation times a weight per feature; the value kept is the activation itself. Designated features
(the DSF baseline) and the others are two pools with a BatchTopK and a threshold each.

Legend: B pairs, F features, K number of kept entries (k * B), n designated features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from modeldiff.crosscoder.config import CrosscoderConfig
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


@torch.no_grad()
def pooled_topk(
    score_BF: torch.Tensor, count: int, config: CrosscoderConfig
) -> tuple[torch.Tensor, tuple[float | None, float | None]]:
    """Flat indices, ascending, of the `count` kept entries, and the smallest kept score of the others and of the
    designated features, None where none was kept.

    Without designated features this is `batch_topk`. With n of them, they keep `designated_k * n / F` of the entries,
    so `designated_k` times their share, and the others the rest, also what the designated ones have no positive score
    for. The total stays `count`: the paper leaves open whether the larger k of the subset comes on top (5.2), and
    architectures are compared at equal L0.
    """
    n, n_features = config.n_designated, config.n_features
    if n == 0:
        kept_K = batch_topk(score_BF, count)
        return kept_K, (_smallest(score_BF.reshape(-1)[kept_K]), None)
    designated, others = score_BF[:, :n], score_BF[:, n:]
    kept_d = batch_topk(designated, round(config.designated_k * n / n_features * count))
    kept_o = batch_topk(others, count - len(kept_d))
    flat_d = kept_d // n * n_features + kept_d % n
    flat_o = kept_o // max(1, n_features - n) * n_features + kept_o % max(1, n_features - n) + n
    smallest = (_smallest(others.reshape(-1)[kept_o]), _smallest(designated.reshape(-1)[kept_d]))
    return torch.cat([flat_d, flat_o]).sort().values, smallest


def _smallest(score_K: torch.Tensor) -> float | None:
    return float(score_K.min()) if len(score_K) else None


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

    def update(self, smallest_kept: float | None) -> None:
        """Take in one batch's smallest kept score; None changes nothing."""
        if smallest_kept is None:
            return
        self.total = self.beta * self.total + (1 - self.beta) * smallest_kept
        self.weight = self.beta * self.weight + (1 - self.beta)

    @property
    def value(self) -> float:
        """The threshold; 0 before the first update."""
        return self.total / self.weight if self.weight else 0.0
