"""How good moved directions are, by geometry: cosines with the target's own contrast, their nulls and errors.

Two nulls stand beside the cosine of each rule. Random: directions drawn evenly in the source, moved by the same rule.
Relabelled: differences between halves of the very responses the contrast is made of, each half holding both classes,
moved by the same rule; they lie where the models' activations vary, which random directions do not.

Legend: N directions, D width of a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modeldiff.steer.transfer_contrast import Contrast, relabelled, resampled
from modeldiff.steer.transfer_rules import RULES, Mover, cosine

RESAMPLES = 200
RELABELLINGS = 100


def random_directions(n: int, width: int, seed: int) -> Tensor:
    """(n, width) of norm 1, evenly over all directions."""
    x_ND = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return x_ND / x_ND.norm(dim=1, keepdim=True)


def account(mover: Mover, v_ND: Tensor, random_ND: Tensor) -> dict[str, list[dict[str, Any]]]:
    """By rule, for each direction: what the rule used, and the cosine of its own account of the direction in the source
    (its combination of decoders, or the map there and back) with the direction; `null`: the mean for random ones."""
    made: dict[str, list[dict[str, Any]]] = {}
    for rule in RULES:
        moved = mover.move(rule, v_ND)
        null = float(cosine(mover.move(rule, random_ND).source_ND, random_ND).mean())
        cosine_N = cosine(moved.source_ND, v_ND).tolist()
        norm_N = moved.target_ND.norm(dim=1).tolist()
        made[rule] = [
            {"cosine_in_source": cosine_N[i], "null": null, "norm_before_rescaling": norm_N[i], "features": None}
            for i in range(len(v_ND))
        ]
        if moved.features_NK is not None and moved.weights_NK is not None:
            for one, ids_K, weight_K in zip(made[rule], moved.features_NK, moved.weights_NK, strict=True):
                one["features"] = [
                    {"id": i, "weight": weight}
                    for i, weight in zip(ids_K.tolist(), weight_K.tolist(), strict=True)
                    if weight
                ]
    return made


def cosines(
    mover: Mover, v_D: Tensor, own: Contrast, source: Contrast | None, random_ND: Tensor, seed: int
) -> dict[str, Any]:
    """Cosines with the target's own contrast.

    Args:
        v_D: the direction in the source.
        own: the contrast as the target makes it.
        source: the contrast that `v_D` is, if it is one: then it is resampled along with the target's.
        random_ND: directions of the source for the null.
    """
    own_D = own.vector_D
    resampled_own, *rest = resampled([own, source] if source else [own], RESAMPLES, seed)
    drawn_RD = rest[0] if rest else v_D.expand(RESAMPLES, -1)
    relabelled_ND = relabelled(source, RELABELLINGS, seed) if source else None
    rules = {}
    for rule in RULES:
        at_R = cosine(mover.move(rule, drawn_RD).target_ND, resampled_own)
        rules[rule] = {
            "cosine": float(cosine(mover.move(rule, v_D[None]).target_ND[0], own_D)),
            "error": float(at_R.std(correction=1)),
            "random": _null(cosine(mover.move(rule, random_ND).target_ND, own_D)),
            "relabelled": None
            if relabelled_ND is None
            else _null(cosine(mover.move(rule, relabelled_ND).target_ND, own_D)),
        }
    in_target_ND = random_directions(len(random_ND), len(own_D), seed + 1)
    return {
        "rules": rules,
        "random_in_target": _null(cosine(in_target_ND, own_D)),
        "split_half_source": float(cosine(*source.halves())) if source else None,
        "split_half_target": float(cosine(*own.halves())),
    }


def _null(cosine_N: Tensor) -> dict[str, float]:
    """Mean, standard deviation, and the absolute value that 95 of 100 stay below."""
    return {
        "mean": float(cosine_N.mean()),
        "sd": float(cosine_N.std(correction=1)),
        "abs_95": float(cosine_N.abs().quantile(0.95)),
    }
