"""A trained crosscoder on held-out pairs, with the inference threshold.

Legend: N rows of a block, F features.
"""

from __future__ import annotations

from typing import Any

import torch

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.training.metrics import Quality, by_partition
from modeldiff.linear.quality import within_norm
from modeldiff.workspace.activations import ActivationStore, Block


@torch.no_grad()
def evaluate(
    crosscoder: Crosscoder, store: ActivationStore, blocks: list[Block], outlier_factor: float
) -> dict[str, Any]:
    """FVE by side (all features, shared only, gain of the exclusive ones), L0 and active features by partition.

    As in training, a pair is left out when either side's norm exceeds `outlier_factor` times the median, here
    that of the whole store.

    Raises:
        DamagedError: activations that are not finite.
    """
    quality = Quality(crosscoder)
    active_F = torch.zeros(crosscoder.n_features, dtype=torch.long, device=crosscoder.b_enc.device)
    pairs = left_out = 0
    for block in blocks:
        x_a, x_b = store.read(block)
        keep_N = within_norm(store, {"a": x_a, "b": x_b}, outlier_factor)
        left_out += len(x_a) - int(keep_N.sum())
        x_a, x_b = crosscoder.normalise(x_a[keep_N], x_b[keep_N])
        f_NF = crosscoder.encode(x_a, x_b, raw=False)
        quality.add_code((x_a, x_b), f_NF)
        active_F += (f_NF > 0).sum(dim=0)
        pairs += len(x_a)
    l0 = {name: count / max(1, pairs) for name, count in by_partition(crosscoder, active_F).items()}
    return {
        "pairs": pairs,
        "left_out": left_out,
        **quality.figures(),
        "l0": sum(l0.values()),
        "l0_by_partition": l0,
        "active_features": {name: int(n) for name, n in by_partition(crosscoder, active_F > 0).items()},
    }
