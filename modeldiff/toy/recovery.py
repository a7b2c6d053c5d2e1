"""Which concepts a dictionary recovers, and what its exclusive features really are (paper 4.2).

Legend: C concepts, F features, Da, Db widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.toy.world import A_ONLY, B_ONLY, CLASSES, SHARED, World

COSINE = 0.8
"""A feature recovers a concept when the cosine between its decoder and the concept's direction exceeds this."""
EXCLUSIVE_NORM = 0.8
"""Relative decoder norm above which a feature counts as A-exclusive, and below 1 minus which as B-exclusive."""
_OWN = {"A": ("a", A_ONLY), "B": ("b", B_ONLY)}


@dataclass(frozen=True)
class Dictionary:
    """What recovery is measured on: decoders and which features are exclusive.

    Attributes:
        decoders: by side, (F, D); zero rows where a feature does not exist.
        classes_F: int64, SHARED, A_ONLY or B_ONLY.
        alive_F: bool, features that fire.
    """

    decoders: dict[str, torch.Tensor]
    classes_F: torch.Tensor
    alive_F: torch.Tensor


def dictionary_of(crosscoder: Crosscoder, alive_F: torch.Tensor) -> Dictionary:
    """Decoders of a crosscoder, its features classed by relative norm (1 and 0 in the exclusive partitions)."""
    decoders = {}
    for side, w_dec in (("a", crosscoder.w_dec_a), ("b", crosscoder.w_dec_b)):
        full_FD = torch.zeros(crosscoder.n_features, w_dec.shape[1])
        full_FD[crosscoder.sees(side)] = w_dec.detach().cpu()
        decoders[side] = full_FD
    relative_F = crosscoder.relative_norm().cpu()
    classes_F = torch.full((len(relative_F),), SHARED)
    classes_F[relative_F > EXCLUSIVE_NORM] = A_ONLY
    classes_F[relative_F < 1 - EXCLUSIVE_NORM] = B_ONLY
    return Dictionary(decoders, classes_F, alive_F.cpu())


@dataclass(frozen=True)
class Recovery:
    """Concepts against features.

    Attributes:
        any_C: recovered by a feature of any class, in a model that has the concept.
        right_C: recovered by a feature of the concept's own class, in every model that has the concept.
        exclusive: by side "A" and "B": `features` classed exclusive and alive; of those `true` recover a concept of
            their model alone, `shared` recover a shared one (and none of their own), `nothing` recover none; `dead`
            ones are counted apart.
        shared_recovering_exclusive: features classed shared that recover a concept of one model alone.
    """

    any_C: torch.Tensor
    right_C: torch.Tensor
    exclusive: dict[str, dict[str, int]]
    shared_recovering_exclusive: int

    def recall(self, world: World) -> dict[str, dict[str, float | None]]:
        """Share of the concepts of each class that are recovered: `any` and `right`; None where there are none."""
        result: dict[str, dict[str, float | None]] = {}
        for kind, mask_C in (("any", self.any_C), ("right", self.right_C)):
            result[kind] = {}
            for name, number in CLASSES.items():
                of_class = mask_C[world.classes_C == number]
                result[kind][name] = float(of_class.float().mean()) if len(of_class) else None
        return result


@torch.no_grad()
def recovery(world: World, dictionary: Dictionary) -> Recovery:
    """Measure a dictionary against the truth. Features that never fire recover nothing."""
    hit = {
        side: (_cosines(world.directions[side], dictionary.decoders[side]) > COSINE) & dictionary.alive_F
        for side in ("a", "b")
    }
    classes_C, classes_F = world.classes_C, dictionary.classes_F
    any_C = hit["a"].any(1) | hit["b"].any(1)
    right_C = torch.zeros_like(any_C)
    both_CF = hit["a"] & hit["b"]
    right_C[classes_C == SHARED] = both_CF[classes_C == SHARED][:, classes_F == SHARED].any(1)
    exclusive = {}
    for name, (side, number) in _OWN.items():
        right_C[classes_C == number] = hit[side][classes_C == number][:, classes_F == number].any(1)
        mine_F = (classes_F == number) & dictionary.alive_F
        true_F = mine_F & hit[side][classes_C == number].any(0)
        shared_F = mine_F & ~true_F & hit[side][classes_C == SHARED].any(0)
        exclusive[name] = {
            "features": int(mine_F.sum()),
            "true": int(true_F.sum()),
            "shared": int(shared_F.sum()),
            "nothing": int((mine_F & ~true_F & ~shared_F).sum()),
            "dead": int(((classes_F == number) & ~dictionary.alive_F).sum()),
        }
    of_one_F = hit["a"][classes_C == A_ONLY].any(0) | hit["b"][classes_C == B_ONLY].any(0)
    wrong = int(((classes_F == SHARED) & of_one_F).sum())
    return Recovery(any_C, right_C, exclusive, wrong)


def _cosines(concepts_CD: torch.Tensor, decoders_FD: torch.Tensor) -> torch.Tensor:
    """(C, F); 0 where either vector is zero."""
    tiny = torch.finfo(torch.float32).tiny
    concepts_CD = concepts_CD / concepts_CD.norm(dim=1, keepdim=True).clamp_min(tiny)
    decoders_FD = decoders_FD / decoders_FD.norm(dim=1, keepdim=True).clamp_min(tiny)
    return concepts_CD @ decoders_FD.T
