"""Rules that move a direction of one model to the other one (paper 8.2, 13.1).

A crosscoder's decoder reconstructs normalised activations, raw x scale. Everything here is in raw units: a decoder row
is divided by its model's scale, so that a coefficient means the same feature activation on both sides.

Legend: N directions, F shared features, K chosen ones, D width of a model (Ds source, Dt target).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from modeldiff.crosscoder import Crosscoder
from modeldiff.linear.maps import LinearMap
from modeldiff.sides import OTHER, SIDES

RULES = ("paper", "stitch")


@dataclass(frozen=True)
class Decoders:
    """The shared features' rows in both models, raw units, float32, on one device."""

    source_FD: Tensor
    target_FD: Tensor
    ids_F: Tensor
    """int64: their numbers in the crosscoder."""

    @classmethod
    def of(
        cls,
        crosscoder: Crosscoder,
        source: str,
        alive_F: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Decoders:
        """Those of a crosscoder, read from model "a" or "b".

        Args:
            alive_F: (all features) bool; a feature that never fires has a decoder that no data ever shaped, so it is
                left out. A row without length has no direction, and is left out too.
            device: where the rules are computed; not mps, which has no float64.
        """
        shared = crosscoder.slices["shared"]
        rows = {}
        for side in SIDES:
            start = crosscoder.sees(side).start
            mine_FD = crosscoder.decoder(side).detach()[shared.start - start : shared.stop - start]
            rows[side] = crosscoder.config.raw_direction(side, mine_FD.float().cpu())
        source_FD, target_FD = rows[source], rows[OTHER[source]]
        kept_F = source_FD.norm(dim=1) > 0
        if alive_F is not None:
            kept_F &= alive_F[shared]
        ids_F = torch.arange(shared.start, shared.stop)[kept_F]
        return cls(source_FD[kept_F].to(device), target_FD[kept_F].to(device), ids_F.to(device))

    def __len__(self) -> int:
        return len(self.ids_F)

    def cosines(self, v_ND: Tensor) -> Tensor:
        """(N, F): of each direction with each row of the source."""
        return unit(v_ND) @ self.source_FD.T / self.norm_F

    @cached_property
    def norm_F(self) -> Tensor:
        """Lengths of the source's rows."""
        return self.source_FD.norm(dim=1)


@dataclass(frozen=True)
class Moved:
    """What a rule makes of directions, before they are rescaled."""

    target_ND: Tensor
    """In the target, raw units. A row of zeros where the rule found nothing."""
    source_ND: Tensor
    """The rule's own account of the direction in the source: its combination of the source's decoders, or the map
    there and back. Its cosine with the direction says how much of that the rule understood."""
    features_NK: Tensor | None = None
    """int64: numbers of the features used, strongest first. None: the rule uses none."""
    weights_NK: Tensor | None = None


def paper_rule(decoders: Decoders, v_ND: Tensor, top: int) -> Moved:
    """The DFC paper's rule (eq. 13-17): of the `top` shared features whose source decoder has the highest cosine with
    the direction, the mean of the target decoders, weighted by that cosine.

    Decoders are averaged as long as they are, as in the paper, each in the crosscoder's normalised units (a model's
    scale is common to all of its rows, and is lost when the result is rescaled).
    """
    weight_NK, at_NK = decoders.cosines(v_ND).topk(min(top, len(decoders)), dim=1)
    # Where the cosines sum to nothing the mean has no sign; the paper's features all lean towards the direction.
    share_NK = weight_NK / weight_NK.sum(dim=1, keepdim=True).abs().clamp_min(torch.finfo(torch.float32).tiny)
    target_ND = (share_NK[:, None] @ decoders.target_FD[at_NK])[:, 0]
    source_ND = (share_NK[:, None] @ decoders.source_FD[at_NK])[:, 0]
    return Moved(target_ND, source_ND, decoders.ids_F[at_NK], weight_NK)


def stitch_rule(there: LinearMap, back: LinearMap, v_ND: Tensor) -> Moved:
    """The matrix of the ridge stitch, without the bias: a direction is a difference of activations."""
    target_ND = there.direction(v_ND.float())
    return Moved(target_ND, back.direction(target_ND))


@dataclass(frozen=True)
class Mover:
    """All rules, ready to be applied to directions of the source."""

    decoders: Decoders
    there: LinearMap
    back: LinearMap
    top: int

    def move(self, rule: str, v_ND: Tensor) -> Moved:
        """Directions (N, Ds) in the target, not rescaled; taken and given on the CPU."""
        x_ND = v_ND.float().to(self.decoders.source_FD.device)
        if rule == "paper":
            moved = paper_rule(self.decoders, x_ND, self.top)
        else:
            moved = stitch_rule(self.there, self.back, x_ND)
        parts = (moved.target_ND, moved.source_ND, moved.features_NK, moved.weights_NK)
        return Moved(*(one if one is None else one.cpu() for one in parts))  # type: ignore[arg-type]


def rescaled(moved_ND: Tensor, norms_N: Tensor | Sequence[float]) -> Tensor:
    """The directions with these norms; a row of zeros stays one."""
    return unit(moved_ND) * torch.as_tensor(norms_N, dtype=moved_ND.dtype)[:, None]


def unit(x_ND: Tensor) -> Tensor:
    """Rows of norm 1; a row of zeros stays one."""
    return x_ND / x_ND.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x_ND.dtype).tiny)


def cosine(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    """Row by row (broadcast), in float64; 0 where one of them is a row of zeros."""
    return (unit(one_ND.double()) * unit(other_ND.double())).sum(dim=-1)
