"""How good a crosscoder is on pairs that it was not trained on."""

from __future__ import annotations

from typing import Any

import torch

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.training.quality import Quality, by_partition
from modeldiff.linear.quality import within_norm
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore, Block


@torch.no_grad()
def evaluate(
    crosscoder: Crosscoder, store: ActivationStore, blocks: list[Block], outlier_factor: float
) -> dict[str, Any]:
    """A trained crosscoder on held-out pairs: FVE by side (all features, shared only, gain of the exclusive ones), L0
    and active features by partition. Pairs are left out as in training, by the median norm of the whole store."""
    quality = Quality(crosscoder)
    active_F = torch.zeros(crosscoder.n_features, dtype=torch.long, device=crosscoder.b_enc.device)
    pairs = left_out = 0
    for block in blocks:
        raw = dict(zip(SIDES, store.read(block), strict=True))
        keep_N = within_norm(store, raw, outlier_factor)
        x = crosscoder.normalise(raw["a"][keep_N], raw["b"][keep_N])
        f_NF = crosscoder.encode(*x, raw=False)
        quality.add_code(x, f_NF)
        active_F += (f_NF > 0).sum(dim=0)
        pairs += len(f_NF)
        left_out += len(block) - len(f_NF)
    l0 = {name: count / max(1, pairs) for name, count in by_partition(crosscoder, active_F).items()}
    return {
        "pairs": pairs,
        "left_out": left_out,
        **quality.figures(),
        "l0": sum(l0.values()),
        "l0_by_partition": l0,
        "active_features": {name: int(n) for name, n in by_partition(crosscoder, active_F > 0).items()},
    }
