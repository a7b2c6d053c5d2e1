"""Is an exclusive feature really exclusive? Judged by what the other model's activations predict of it.

A feature of A is compared with itself: the share of its activation that a linear map of B's activations explains on
held-out pairs, against the share that one of A's own explains (a sparse feature is never fully linear), beside the
share found when the pairs are permuted. What ratio a concept that both models have would show is not assumed but
measured, on shared features read from one model alone: half of that is the bar.

Legend: N pairs, B pairs of a batch, D width of one model, F features, G features judged, R shared features taken for
reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from modeldiff.crosscoder.model import Both, Crosscoder
from modeldiff.linear.ridge import Moments, held_out_r2
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES

MIN_FIRINGS = 5
"""A feature that fires less often than this in either half of the pairs is not judged."""
EXTREME_NORM = 0.8
"""A shared feature of which one model has more than this share of the decoder norm is judged as that model's (the
paper's toy, 4.2)."""
# Half of the ratio other / own that shared features show: the middle between a concept of both models and none.
_BAR = 0.5
_REFERENCES, _LEAST_REFERENCES = 64, 8
_NULL_QUANTILE = 0.95


@dataclass
class Sample:
    """What a dictionary makes of some pairs, kept as far as an audit needs it."""

    batches: Sequence[Both]
    """(x_a, x_b) in normalised units."""
    errors: dict[str, list[torch.Tensor]]
    """By side, for each batch activation minus reconstruction (B, D)."""
    judged: dict[str, torch.Tensor]
    """By side, numbers (G,) of the features to judge: the exclusive ones, then shared ones of extreme decoder norm."""
    codes: dict[str, list[torch.Tensor]]
    """By side, for each batch their activations (B, G)."""
    reference_R: torch.Tensor
    """Numbers of shared features that neither model dominates."""
    fires_F: torch.Tensor
    """int64, pairs on which each feature is active; `ff_F`: sums of f²."""
    ff_F: torch.Tensor
    fe: dict[str, torch.Tensor]
    """By side, sums of f times error (F, D)."""
    threshold: float
    """Mean over the batches of the smallest score kept."""

    def x(self, side: str) -> list[torch.Tensor]:
        return [batch[side == "b"] for batch in self.batches]

    @property
    def frequent(self) -> float:
        """Firings that nearly all features stay below: twice what three quarters of them do. What fires more often is
        no concept but a direction in which its model varies all the time, and where the linear map errs."""
        fires_F = self.fires_F[self.fires_F > 0]
        return 2 * float(fires_F.double().quantile(0.75)) if len(fires_F) else math.inf


@torch.no_grad()
def sample(
    crosscoder: Crosscoder, batches: Sequence[Both], select: Callable[[torch.Tensor], tuple[torch.Tensor, float]]
) -> Sample:
    """Run the crosscoder over batches in normalised units; `select` is pre_BF -> (code f_BF, smallest score kept)."""
    relative_F, n, shared = crosscoder.relative_norm(), crosscoder.n_features, crosscoder.slices["shared"]
    relative_S = relative_F[shared]
    reference_R = shared.start + ((relative_S - 0.5).abs() <= EXTREME_NORM - 0.5).nonzero()[:, 0]
    reference_R = reference_R[:: max(1, len(reference_R) // _REFERENCES)][:_REFERENCES]
    judged = {}
    for side, share_S in (("a", relative_S), ("b", 1 - relative_S)):
        own = crosscoder.slices[EXCLUSIVE[side]]
        extreme = shared.start + (share_S > EXTREME_NORM).nonzero()[:, 0]
        judged[side] = torch.cat([torch.arange(own.start, own.stop, device=extreme.device), extreme])
    made = Sample(
        batches=batches,
        errors={side: [] for side in SIDES},
        judged=judged,
        codes={side: [] for side in SIDES},
        reference_R=reference_R,
        fires_F=torch.zeros(n, dtype=torch.long, device=relative_F.device),
        ff_F=torch.zeros_like(relative_F),
        fe={side: relative_F.new_zeros(n, batches[0][side == "b"].shape[1]) for side in SIDES},
        threshold=0.0,
    )
    for x_a, x_b in batches:
        f_BF, smallest = select(crosscoder.pre_activations(x_a, x_b))
        xhat_a, xhat_b = crosscoder.decode(f_BF, raw=False)
        for side, e_BD in (("a", x_a - xhat_a), ("b", x_b - xhat_b)):
            made.errors[side].append(e_BD)
            made.fe[side] += f_BF.T @ e_BD
            made.codes[side].append(f_BF[:, judged[side]])
        made.ff_F += f_BF.square().sum(dim=0)
        made.fires_F += (f_BF > 0).sum(dim=0)
        made.threshold += smallest / len(batches)
    return made


@dataclass(frozen=True)
class Evidence:
    """About the judged features (G,) of one side: held-out R² from the owner's activations, from the other model's, and
    from the other model's in permuted pairs (NaN: fires too rarely to be judged); on how many pairs it fires; and
    `reference`, the median of other / own over shared features read from the owner alone, 1 if there are too few."""

    own_G: torch.Tensor
    other_G: torch.Tensor
    null_G: torch.Tensor
    fires_G: torch.Tensor
    reference: float

    @property
    def known_G(self) -> torch.Tensor:
        return ~self.own_G.isnan()

    @property
    def bar(self) -> float:
        """Largest other / own of a feature that is called exclusive."""
        return _BAR * self.reference

    @property
    def null(self) -> float:
        """R² that one feature in twenty reaches in permuted pairs; at least 0."""
        known = self.null_G[self.known_G]
        return max(0.0, float(known.quantile(_NULL_QUANTILE))) if len(known) else 0.0

    @property
    def exclusive_G(self) -> torch.Tensor:
        return exclusive(self.own_G, self.other_G, bar=self.bar, null=self.null)


def exclusive(own_G: torch.Tensor, other_G: torch.Tensor, *, bar: float, null: float) -> torch.Tensor:
    """Mask (G,): R² from the own model above `null`, and that from the other one below `bar` times it, or `null`."""
    return (other_G <= (bar * own_G).clamp_min(null)) & (own_G > null)


@torch.no_grad()
def judge(crosscoder: Crosscoder, sampled: Sample, side: str) -> Evidence:
    alone = read_alone(crosscoder, sampled, side)
    targets = [torch.cat(both, dim=1) for both in zip(sampled.codes[side], alone, strict=True)]
    r2 = judged_r2(sampled, targets, side)
    g = len(sampled.judged[side])
    # An R² from the own model near 0 says that a shared feature cannot be read from it: no reference.
    readable_R = r2["own"][g:] > 0.01
    ratio_R = (r2["other"][g:] / r2["own"][g:])[readable_R]
    reference = float(ratio_R.median().clamp(0, 1)) if len(ratio_R) >= _LEAST_REFERENCES else 1.0
    fires_G = torch.stack([(part > 0).sum(dim=0) for part in sampled.codes[side]]).sum(dim=0)
    return Evidence(r2["own"][:g], r2["other"][:g], r2["null"][:g], fires_G, reference)


def judged_r2(sampled: Sample, targets: Sequence[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """Held-out R² (G,) of targets (B, G): from the `own` side, the `other` one, and `null`, the other one permuted.

    Regressions are fitted on every other batch and measured on the rest. NaN: fewer than MIN_FIRINGS in either part.
    """
    parts = [targets[0::2], targets[1::2]]
    fires = [torch.stack([(f > 0).sum(dim=0) for f in part]).sum(dim=0) for part in parts]
    rare_G = torch.minimum(*fires) < MIN_FIRINGS
    result = {}
    for name, source, shift in (("own", side, 0), ("other", OTHER[side], 0), ("null", OTHER[side], 1)):
        x = sampled.x(source)
        moments = [Moments.empty(x[0].shape[1], targets[0].shape[1], x[0].device) for _ in parts]
        for half, (sums, part) in enumerate(zip(moments, parts, strict=True)):
            for x_BD, f_BG in zip(x[half::2], part, strict=True):
                sums.add_dense(x_BD.roll(shift, dims=0), f_BG)
        result[name] = held_out_r2(*moments).masked_fill(rare_G, torch.nan)
    return result


def read_alone(crosscoder: Crosscoder, sampled: Sample, side: str) -> list[torch.Tensor]:
    """What a feature of `side` alone would make of each reference feature: its encoder without the other half.

    It fires as often as the shared feature does, and like an exclusive feature not below the threshold. (B, R) each.
    """
    w_enc = crosscoder.encoder(side)
    w_RD = w_enc[sampled.reference_R - crosscoder.sees(side).start]
    pre = [x_BD @ w_RD.T for x_BD in sampled.x(side)]
    pre_NR = torch.cat(pre)
    if not len(w_RD):
        return pre
    places_R = sampled.fires_F[sampled.reference_R].clamp(0, len(pre_NR) - 1)
    bar_R = pre_NR.sort(dim=0, descending=True).values.gather(0, places_R[None])[0]
    return [torch.where(part > bar_R, part - bar_R + sampled.threshold, 0.0) for part in pre]
