"""Which concepts a dictionary recovers, and what its exclusive features really are (paper 4.2).

Legend: C concepts, F features, Da, Db widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.sides import EXCLUSIVE, SIDES
from modeldiff.toy.world import A_ONLY, B_ONLY, CLASSES, SHARED, World

COSINE = 0.8
"""A feature recovers a concept when the cosine between its decoder and the concept's direction exceeds this."""
# Relative decoder norm above which a feature counts as A-exclusive, and below 1 minus which as B-exclusive.
_EXCLUSIVE_NORM = 0.8


@dataclass(frozen=True)
class Dictionary:
    decoders: dict[str, torch.Tensor]
    """By side, (F, D); zero rows where a feature does not exist."""
    classes_F: torch.Tensor
    """int64: SHARED, A_ONLY or B_ONLY."""
    alive_F: torch.Tensor
    """bool: features that fire."""


def dictionary_of(crosscoder: Crosscoder, alive_F: torch.Tensor) -> Dictionary:
    """Decoders of a crosscoder, its features classed by relative norm (1 and 0 in the exclusive partitions)."""
    decoders = {}
    for side in SIDES:
        w_dec = crosscoder.decoder(side)
        full_FD = torch.zeros(crosscoder.n_features, w_dec.shape[1])
        full_FD[crosscoder.sees(side)] = w_dec.detach().cpu()
        decoders[side] = full_FD
    relative_F = crosscoder.relative_norm().cpu()
    classes_F = torch.full((len(relative_F),), SHARED)
    classes_F[relative_F > _EXCLUSIVE_NORM] = A_ONLY
    classes_F[relative_F < 1 - _EXCLUSIVE_NORM] = B_ONLY
    return Dictionary(decoders, classes_F, alive_F.cpu())


@dataclass(frozen=True)
class Recovery:
    """Concepts against features. any_C: recovered by a feature of any class, in a model that has the concept; right_C:
    by a feature of its own class, in every model that has it; exclusive: by partition "A" and "B", `features` classed
    exclusive and alive; of those `true` recover a concept of their model alone, `shared` a shared one (and none of
    their own), `nothing` none; `dead` ones are counted apart."""

    any_C: torch.Tensor
    right_C: torch.Tensor
    exclusive: dict[str, dict[str, int]]

    def recall(self, world: World) -> dict[str, dict[str, float | None]]:
        """Share of the concepts of each class that are recovered: `any` and `right`; None where there are none."""

        def share(recovered: torch.Tensor) -> float | None:
            return float(recovered.float().mean()) if len(recovered) else None

        masks = {"any": self.any_C, "right": self.right_C}
        of_class = {name: world.classes_C == number for name, number in CLASSES.items()}
        return {kind: {name: share(mask_C[of]) for name, of in of_class.items()} for kind, mask_C in masks.items()}


@torch.no_grad()
def recovery(world: World, dictionary: Dictionary) -> Recovery:
    """Measure a dictionary against the truth. Features that never fire recover nothing."""
    classes_C, classes_F, alive_F = world.classes_C, dictionary.classes_F, dictionary.alive_F
    hit = {}
    for side in SIDES:
        cosine_CF = normalize(world.directions[side]) @ normalize(dictionary.decoders[side]).T
        hit[side] = (cosine_CF > COSINE) & alive_F
    any_C = hit["a"].any(1) | hit["b"].any(1)
    right_C = torch.zeros_like(any_C)
    both_CF = hit["a"] & hit["b"]
    right_C[classes_C == SHARED] = both_CF[classes_C == SHARED][:, classes_F == SHARED].any(1)
    exclusive = {}
    for side, name in EXCLUSIVE.items():
        number = CLASSES[name]
        right_C[classes_C == number] = hit[side][classes_C == number][:, classes_F == number].any(1)
        mine_F = (classes_F == number) & alive_F
        true_F = mine_F & hit[side][classes_C == number].any(0)
        shared_F = mine_F & ~true_F & hit[side][classes_C == SHARED].any(0)
        exclusive[name] = {
            "features": int(mine_F.sum()),
            "true": int(true_F.sum()),
            "shared": int(shared_F.sum()),
            "nothing": int((mine_F & ~true_F & ~shared_F).sum()),
            "dead": int(((classes_F == number) & ~alive_F).sum()),
        }
    return Recovery(any_C, right_C, exclusive)
