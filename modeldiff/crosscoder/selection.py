"""Which features are active: BatchTopK over a whole batch in training, a threshold at inference.

BatchTopK (paper 2.2, 12.4) keeps the k * B largest scores of the flattened batch, over the whole dictionary jointly.
The score is the activation times a weight per feature (`Crosscoder.score_weights`); the value kept is the activation
itself. Designated features (the DSF baseline) and the others are two pools with a BatchTopK and a threshold each.

Legend: K number of kept entries (k * B), n designated features.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.fast.scores import Scores, batch_topk

# Of the public code (paper 2.3): the threshold is a moving average with this memory, here shortened in short runs.
EMA_BETA = 0.999


def pooled_topk(
    scores: Scores, count: int, config: CrosscoderConfig
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
        kept_K, score_K = batch_topk(scores, count)
        return kept_K, (_smallest(score_K), None)
    kept_d, score_d = batch_topk(scores.columns(slice(n)), round(config.designated_k * n / n_features * count))
    kept_o, score_o = batch_topk(scores.columns(slice(n, None)), count - len(kept_d))
    flat_d = kept_d // n * n_features + kept_d % n
    flat_o = kept_o // max(1, n_features - n) * n_features + kept_o % max(1, n_features - n) + n
    return torch.cat([flat_d, flat_o]).sort().values, (_smallest(score_o), _smallest(score_d))


def _smallest(score_K: torch.Tensor) -> float | None:
    return float(score_K.min()) if len(score_K) else None


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
