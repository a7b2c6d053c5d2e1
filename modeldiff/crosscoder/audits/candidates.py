"""Directions of one model that the other one does not predict: where a new exclusive feature should start.

What the dictionary leaves unexplained in A, minus what a linear map of B's activations predicts of that, is made of
the concepts that only A has and of what a linear map misses of the others. Its recurring directions are found by
clustering, and each is tested as the feature that it would become.

Legend: N pairs, D width of one model, M candidates, G features that are kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from modeldiff.crosscoder.audits.judging import EXTREME_NORM, Evidence, Sample, exclusive, judged_r2
from modeldiff.linear.ridge import Moments, ridge_weights
from modeldiff.sides import OTHER, SIDES

SAME_COSINE = 0.8
"""Two directions closer than this are one."""
_ROUNDS, _MERGED_ROUNDS = 10, 3
# A pair belongs to a direction when it points there at least this much.
_LEAST_COSINE = 0.45
# Its mean activation exceeds the selection's threshold by this factor at least: it must win its place to learn.
_LEAST_ACTIVATION = 1.2
_TINY = 1e-9


@dataclass(frozen=True)
class Candidates:
    """Features that could be planted, best first, and the squared error per pair that each would explain (gain_M)."""

    decoder_MD: torch.Tensor
    encoder_MD: torch.Tensor
    bias_M: torch.Tensor
    gain_M: torch.Tensor

    def __len__(self) -> int:
        return len(self.bias_M)

    @classmethod
    def none(cls, like_GD: torch.Tensor) -> Candidates:
        return cls(like_GD[:0], like_GD[:0], like_GD.new_zeros(0), like_GD.new_zeros(0))

    def take(self, chosen: torch.Tensor | slice) -> Candidates:
        return Candidates(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


@torch.no_grad()
def found_exclusive(
    sampled: Sample,
    evidence: Evidence,
    side: str,
    count: int,
    *,
    kept_GD: torch.Tensor,
    released_GD: torch.Tensor,
    decoder_norm: float,
    random: torch.Generator,
) -> Candidates:
    """Candidates for exclusive features of `side`, out of `count` directions, that pass the judgement of features.

    Args:
        kept_GD: unit directions of the exclusive features that stay; when found again they are left out.
        released_GD: decoder rows of the judged features that lose their slots, 0 for the others: what they explain
            counts as error.
        decoder_norm: norm that decoder rows should have, about.
    """
    e_ND, f_NG, x_own_ND, x_other_ND = (
        torch.cat(parts)
        for parts in (sampled.errors[side], sampled.codes[side], sampled.x(side), sampled.x(OTHER[side]))
    )
    e_ND = e_ND + f_NG @ released_GD
    fit = Moments.empty(x_other_ND.shape[1], e_ND.shape[1], x_other_ND.device)
    fit.add_dense(x_other_ND, e_ND)
    predicted_ND = (x_other_ND - x_other_ND.mean(dim=0)) @ ridge_weights(fit).to(x_other_ND.dtype)
    r_ND = e_ND - e_ND.mean(dim=0) - predicted_ND
    u_MD, f_NM, found = _found(r_ND, e_ND, x_own_ND, count, sampled.threshold, decoder_norm, random)
    r2 = judged_r2(sampled, f_NM.split([len(x_a) for x_a, _ in sampled.batches]), side)
    good_M = exclusive(r2["own"], r2["other"], bar=evidence.bar, null=evidence.null)
    good_M &= (f_NM > 0).sum(dim=0) <= sampled.frequent
    good_M &= found.gain_M > 0
    if len(kept_GD):
        good_M &= (u_MD @ kept_GD.T).max(dim=1).values <= SAME_COSINE
    return found.take(distinct(u_MD, found.gain_M, good_M))


@torch.no_grad()
def found_shared(sampled: Sample, count: int, *, decoder_norm: float, random: torch.Generator) -> Candidates:
    """Candidates for shared features, out of `count` directions of the error in both models at once, (M, Da + Db);
    `decoder_norm` is over both models."""
    e_ND, x_ND = (
        torch.cat([torch.cat(both, dim=1) for both in zip(*parts, strict=True)])
        for parts in ([sampled.errors[side] for side in SIDES], [sampled.x(side) for side in SIDES])
    )
    r_ND = e_ND - e_ND.mean(dim=0)
    u_MD, _, found = _found(r_ND, e_ND, x_ND, count, sampled.threshold, decoder_norm, random)
    share_M = u_MD[:, : sampled.errors["a"][0].shape[1]].square().sum(dim=1)
    in_both_M = (share_M - 0.5).abs() <= EXTREME_NORM - 0.5
    return found.take(distinct(u_MD, found.gain_M, in_both_M & (found.gain_M > 0)))


def _found(
    r_ND: torch.Tensor,
    e_ND: torch.Tensor,
    x_ND: torch.Tensor,
    count: int,
    threshold: float,
    decoder_norm: float,
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, Candidates]:
    """Recurring directions of r, as features that read x and explain e: (u_MD, f_NM, candidates), in no order."""
    u_MD, t_NM = _clusters(r_ND, count, random)
    along_NM = e_ND @ u_MD.T
    f_NM, encoder_MD, bias_M = _as_features(x_ND, t_NM, along_NM, threshold, decoder_norm)
    ff_M = f_NM.square().sum(dim=0).clamp_min(_TINY)
    length_M = ((f_NM * along_NM).sum(dim=0) / ff_M).clamp_min(0)
    gain_M = length_M.square() * ff_M / len(f_NM)
    return u_MD, f_NM, Candidates(length_M[:, None] * u_MD, encoder_MD, bias_M, gain_M)


def _clusters(r_ND: torch.Tensor, count: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit directions u_MD, and how far each pair points along the one it belongs to, t_NM (0 elsewhere)."""
    norm_N = r_ND.norm(dim=1).clamp_min(_TINY)

    def settled(u_MD: torch.Tensor, rounds: int) -> torch.Tensor:
        """Every direction moved to the mean of its pairs, weighted by how far they point along it."""
        for _ in range(rounds):
            moved_MD = _belonging(r_ND, norm_N, u_MD).T @ r_ND
            length_M1 = moved_MD.norm(dim=1, keepdim=True)
            u_MD = torch.where(length_M1 > _TINY, moved_MD / length_M1.clamp_min(_TINY), u_MD)
        return u_MD

    seeds = torch.multinomial(norm_N.square().cpu(), min(count, len(r_ND)), generator=random).to(r_ND.device)
    u_MD = settled(r_ND[seeds] / norm_N[seeds, None], _ROUNDS)
    # Several seeds often end at one direction and share its pairs: one of them shall have all.
    size_M = _belonging(r_ND, norm_N, u_MD).square().sum(dim=0)
    u_MD = settled(u_MD[distinct(u_MD, size_M, size_M > 0)], _MERGED_ROUNDS)
    return u_MD, _belonging(r_ND, norm_N, u_MD)


def _belonging(r_ND: torch.Tensor, norm_N: torch.Tensor, u_MD: torch.Tensor) -> torch.Tensor:
    """t_NM: a pair belongs to the direction that it points along most, if it does so enough."""
    a_NM = r_ND @ u_MD.T
    best = a_NM.max(dim=1)
    keep_N = best.values > _LEAST_COSINE * norm_N
    return torch.zeros_like(a_NM).scatter(1, best.indices[:, None], (best.values * keep_N)[:, None])


def _as_features(
    x_ND: torch.Tensor, t_NM: torch.Tensor, along_NM: torch.Tensor, threshold: float, decoder_norm: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(f_NM, encoder_MD, bias_M) of features that read x, fire where t is positive, and pass the threshold there.

    The encoder is a ridge regression of t on x, which among interfering directions finds the one concerned better than
    the direction itself does. Slope and bias give the activations the scale that a decoder of `decoder_norm` needs.
    """
    fit = Moments.empty(x_ND.shape[1], t_NM.shape[1], x_ND.device)
    fit.add_dense(x_ND, t_NM)
    w_MD = ridge_weights(fit).T.to(x_ND.dtype)
    p_NM = x_ND @ w_MD.T
    active_M = (t_NM > 0).sum(dim=0).clamp(1, len(p_NM) - 1)
    start_M = p_NM.sort(dim=0, descending=True).values.gather(0, active_M[None])[0]
    over_NM = torch.relu(p_NM - start_M)
    fires_NM = over_NM > 0
    fires_M = fires_NM.sum(dim=0).clamp_min(1)
    wanted_M = (along_NM * fires_NM).sum(dim=0) / fires_M / decoder_norm
    wanted_M = wanted_M.clamp_min(_LEAST_ACTIVATION * threshold)
    slope_M = (wanted_M - threshold) / (over_NM.sum(dim=0) / fires_M).clamp_min(_TINY)
    f_NM = torch.where(fires_NM, over_NM * slope_M + threshold, 0.0)
    return f_NM, slope_M[:, None] * w_MD, threshold - slope_M * start_M


def distinct(u_MD: torch.Tensor, gain_M: torch.Tensor, among_M: torch.Tensor) -> torch.Tensor:
    """Indices by falling gain, among some, of the unit directions that are not close to a better one."""
    same_MM = (u_MD @ u_MD.T > SAME_COSINE).cpu()
    left_M = among_M.to("cpu", copy=True)
    chosen: list[int] = []
    for index in gain_M.argsort(descending=True).tolist():
        if left_M[index]:
            chosen.append(index)
            left_M &= ~same_MM[index]
    return torch.tensor(chosen, dtype=torch.long, device=u_MD.device)
