"""Which pairs of activations are outliers.

Legend: N pairs, D width of a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from modeldiff.errors import DamagedError
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore


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
