"""The active entries of pre-activations at inference: what `Crosscoder.encode` keeps, without a dense code.

Legend: B pairs, F features, K active entries.
"""

from __future__ import annotations

import numpy as np
import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.selection import score_weights


def thresholds(crosscoder: Crosscoder) -> torch.Tensor:
    """(F,) float32: the score that each feature's must exceed."""
    config = crosscoder.config
    threshold_F = torch.full((config.n_features,), config.threshold, device=crosscoder.b_enc.device)
    threshold_F[: config.n_designated] = config.threshold_designated
    return threshold_F


@torch.no_grad()
def active_entries(crosscoder: Crosscoder, pre_BF: torch.Tensor) -> torch.Tensor:
    """(K,) int64: flat indices, ascending, of the pre-activations whose score exceeds the inference threshold."""
    weights_F = score_weights(crosscoder)
    score_BF = pre_BF if weights_F is None else pre_BF * weights_F
    config = crosscoder.config
    above_BF = score_BF > (thresholds(crosscoder) if config.n_designated else config.threshold)
    if above_BF.device.type == "cpu":
        # Three times as fast as torch.nonzero there.
        return torch.from_numpy(np.flatnonzero(above_BF.numpy()))
    return above_BF.view(-1).nonzero()[:, 0]
