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
from modeldiff.crosscoder.linear_map import LinearMap
from modeldiff.sides import OTHER

RULES = ("paper", "lstsq", "ridge", "stitch")


# Of the rule that uses all features, so many are named.
_RIDGE_TOLD = 10


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
        for side, weight, scale in (
            ("a", crosscoder.w_dec_a, crosscoder.config.scale_a),
            ("b", crosscoder.w_dec_b, crosscoder.config.scale_b),
        ):
            start = crosscoder.sees(side).start
            mine_FD = weight.detach()[shared.start - start : shared.stop - start]
            rows[side] = mine_FD.float().cpu() / scale
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

    @cached_property
    def products(self) -> tuple[Tensor, Tensor]:
        """S'S (Ds, Ds) and S'T (Ds, Dt) in float64, S and T the rows of source and target."""
        gram_DD, cross_DD = 0.0, 0.0
        for source_FD, target_FD in zip(self.source_FD.split(8192), self.target_FD.split(8192), strict=True):
            gram_DD = gram_DD + source_FD.double().T @ source_FD.double()
            cross_DD = cross_DD + source_FD.double().T @ target_FD.double()
        return torch.as_tensor(gram_DD), torch.as_tensor(cross_DD)


@dataclass(frozen=True)
class Moved:
    """What a rule makes of directions, before they are rescaled."""

    target_ND: Tensor
    """In the target, raw units. A row of zeros where the rule found nothing."""
    source_ND: Tensor
    """The rule's own account of the direction in the source: its combination of the source's decoders, or the map
    there and back. Its cosine with the direction says how much of that the rule understood."""
    features_NK: Tensor | None = None
    """int64: numbers of the features used (of `ridge`, which uses all: the first few), strongest first. None: the rule
    uses none."""
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
    return _combined(decoders, at_NK, share_NK, weight_NK)


def lstsq_rule(decoders: Decoders, v_ND: Tensor, nonzeros: int) -> Moved:
    """Sparse least squares: the direction as a combination of `nonzeros` source decoders, found by orthogonal matching
    pursuit, and the same combination of the target decoders. Coefficients may be negative."""
    at_NK, coefficient_NK = matching_pursuit(decoders.source_FD, v_ND, min(nonzeros, len(decoders), v_ND.shape[1]))
    order_NK = (coefficient_NK.abs() * decoders.norm_F[at_NK]).argsort(dim=1, descending=True)
    at_NK, coefficient_NK = at_NK.gather(1, order_NK), coefficient_NK.gather(1, order_NK)
    return _combined(decoders, at_NK, coefficient_NK, coefficient_NK)


def ridge_rule(decoders: Decoders, v_ND: Tensor, ridge: float) -> Moved:
    """Ridge regression on all shared decoders: the coefficients c of least |v - c S|² + penalty |c|², on the target's.

    Args:
        ridge: the penalty as a share of the mean squared length of the source's rows S.
    """
    gram_DD, cross_DD = decoders.products
    penalty = ridge * gram_DD.trace() / len(decoders)
    # c = v (S'S + penalty)⁻¹ S': a system as large as the model is wide, however many features there are.
    system_DD = gram_DD + penalty * torch.eye(len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device)
    solved_ND = torch.linalg.solve(system_DD, v_ND.double().T).T
    coefficient_NF = solved_ND.float() @ decoders.source_FD.T
    at_NK = (coefficient_NF.abs() * decoders.norm_F).topk(min(_RIDGE_TOLD, len(decoders)), dim=1).indices
    return Moved(
        (solved_ND @ cross_DD).float(),
        (solved_ND @ gram_DD).float(),
        decoders.ids_F[at_NK],
        coefficient_NF.gather(1, at_NK),
    )


def stitch_rule(there: LinearMap, back: LinearMap, v_ND: Tensor) -> Moved:
    """The matrix of the ridge stitch, without the bias: a direction is a difference of activations."""
    target_ND = there.direction(v_ND.float())
    return Moved(target_ND, back.direction(target_ND))


def matching_pursuit(rows_FD: Tensor, v_ND: Tensor, nonzeros: int) -> tuple[Tensor, Tensor]:
    """Orthogonal matching pursuit of several directions at once.

    Each step takes the row with the largest absolute cosine with what is left, then fits all taken rows anew.

    Returns:
        (indices (N, K), coefficients (N, K)); a row that adds nothing, once all is explained, has coefficient 0.
    """
    norm_F = rows_FD.norm(dim=1)
    wanted_ND = left_ND = v_ND.double()
    at_NK = torch.empty(len(v_ND), 0, dtype=torch.int64, device=v_ND.device)
    coefficient_NK = wanted_ND[:, :0]
    for _ in range(nonzeros):
        score_NF = (left_ND.float() @ rows_FD.T / norm_F).abs().scatter(1, at_NK, -1.0)
        at_NK = torch.cat([at_NK, score_NF.argmax(dim=1, keepdim=True)], dim=1)
        taken_NKD = (rows_FD[at_NK] / norm_F[at_NK][..., None]).double()
        # gelsd also solves taken rows that depend on each other; it is there on the CPU only, and the system is small.
        solution = torch.linalg.lstsq(taken_NKD.mT.cpu(), wanted_ND[..., None].cpu(), driver="gelsd").solution
        coefficient_NK = solution[..., 0].to(v_ND.device)
        left_ND = wanted_ND - (coefficient_NK[:, None] @ taken_NKD)[:, 0]
    return at_NK, (coefficient_NK / norm_F[at_NK]).float()


@dataclass(frozen=True)
class Mover:
    """All rules, ready to be applied to directions of the source."""

    decoders: Decoders
    there: LinearMap
    back: LinearMap
    top: int
    nonzeros: int
    ridge: float

    def move(self, rule: str, v_ND: Tensor) -> Moved:
        """Directions (N, Ds) in the target, not rescaled; taken and given on the CPU."""
        x_ND = v_ND.float().to(self.decoders.source_FD.device)
        if rule == "paper":
            moved = paper_rule(self.decoders, x_ND, self.top)
        elif rule == "lstsq":
            moved = lstsq_rule(self.decoders, x_ND, self.nonzeros)
        elif rule == "ridge":
            moved = ridge_rule(self.decoders, x_ND, self.ridge)
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


def _combined(decoders: Decoders, at_NK: Tensor, combine_NK: Tensor, weight_NK: Tensor) -> Moved:
    target_ND = (combine_NK[:, None] @ decoders.target_FD[at_NK])[:, 0]
    source_ND = (combine_NK[:, None] @ decoders.source_FD[at_NK])[:, 0]
    return Moved(target_ND, source_ND, decoders.ids_F[at_NK], weight_NK)
