"""Audits during training: exclusive features that the other model predicts become shared, and directions that it does
not predict are planted in their place.

A DFC fills its exclusive partitions with whatever lowers the error, in good part concepts that both models have. An
audit judges every exclusive feature on the last pairs before it (audit.py). The predictable ones become shared
features. The slots that this frees are planted with directions that the other model does not predict (prospect.py), up
to the size that the partition was given at the start; slots for which there is none go to the shared part. Shared
features that one model has almost alone and that pass the judgement become exclusive. So a partition ends as large as
the evidence allows: with nothing to find, empty.

Legend: B pairs of a batch, N pairs, D width of one model, F features, G features judged, M planted features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.crosscoder.audits.candidates import SAME_COSINE, Candidates, prospect, prospect_shared
from modeldiff.crosscoder.audits.judging import Evidence, Sample, judge, sample
from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.fast.step import Both
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES

# Directions looked for, for each slot that is free, and besides.
_PER_SLOT, _BESIDES = 4, 64
# A direction is planted when it explains this share of what the kept and the other found ones typically do.
_LEAST_GAIN = 0.25
_TINY = 1e-9
# Keeps these random numbers apart from those of the weights and of the data of the same seed.
_SEED = 1_000_003


@dataclass
class _Decision:
    """What becomes of one side's judged features: numbers by fate, and what is planted."""

    kept: list[int]
    promoted: list[int]
    moved: list[int]
    gone: int
    unjudged: int
    planted: Candidates


class Auditor:
    """Collects the pairs before each audit, and audits: a `Callback` of the trainer."""

    def __init__(self) -> None:
        self._batches: list[Both] = []

    @property
    def collecting(self) -> bool:
        """True while pairs for the next audit are held: a checkpoint at this moment would lose them."""
        return bool(self._batches)

    def __call__(self, trainer: Trainer, x: Both) -> dict[str, Any] | None:
        """After every step: its batch, in normalised units. Returns what an audit did, when the step ended in one."""
        recipe, step = trainer.recipe, trainer.step
        due = recipe.next_audit(step)
        if due is None or due - step >= recipe.audit_batches:
            return None
        self._batches.append(x)
        if due > step:
            return None
        batches, self._batches = self._batches, []
        return _Audit(trainer).audit(batches, last=recipe.next_audit(step + 1) is None)


class _Audit:
    """One audit of a training run."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._most = {"a": trainer.recipe.n_a_only, "b": trainer.recipe.n_b_only}

    @torch.no_grad()
    def audit(self, batches: list[Both], *, last: bool) -> dict[str, Any]:
        """Judge, move, plant. The last audit, at the end of the run, only moves."""
        trainer = self._trainer
        crosscoder = trainer.crosscoder
        sampled = sample(crosscoder, batches, trainer.code)
        worth_F = _worth(crosscoder, sampled)
        decisions, references = {}, {}
        for side in SIDES:
            evidence = judge(crosscoder, sampled, side)
            decisions[side] = self._decide(sampled, evidence, side, worth_F, last=last)
            references[side] = evidence.reference
        order, dropped = self._order(decisions, worth_F, _gain_if_moved(sampled, decisions))
        newcomers = _Newcomers(trainer, sampled, decisions, order)
        former_F = rearrange(crosscoder, trainer.optimizer, order)
        newcomers.fill()
        former_F = former_F.to(trainer.since_active_F.device)
        trainer.since_active_F = torch.where(former_F == FRESH, 0, trainer.since_active_F[former_F.clamp_min(0)])
        report: dict[str, Any] = {"dropped": dropped, "fresh": order["shared"].count(FRESH)}
        for side, decision in decisions.items():
            report[EXCLUSIVE[side]] = {
                "kept": len(decision.kept),
                "promoted": len(decision.promoted),
                "moved": len(decision.moved),
                "gone": decision.gone,
                "unjudged": decision.unjudged,
                "planted": len(decision.planted),
                "reference": references[side],
            }
        return report

    def _decide(
        self, sampled: Sample, evidence: Evidence, side: str, worth_F: torch.Tensor, *, last: bool
    ) -> _Decision:
        crosscoder = self._trainer.crosscoder
        numbers_G = sampled.judged[side]
        own = crosscoder.slices[EXCLUSIVE[side]]
        inside_G = numbers_G < own.stop if side == "a" else numbers_G >= own.start
        rows_GD = crosscoder.decoder(side)[numbers_G - crosscoder.sees(side).start]
        unit_GD = rows_GD / rows_GD.norm(dim=1, keepdim=True).clamp_min(_TINY)
        keep_G = _without_twins(
            evidence.exclusive_G & (evidence.fires_G <= sampled.frequent), unit_GD, worth_F[numbers_G]
        )
        promoted = numbers_G[keep_G & ~inside_G].tolist()[: max(0, self._most[side] - int((keep_G & inside_G).sum()))]
        room = self._most[side] - int((keep_G & inside_G).sum()) - len(promoted)
        # What the features that lose their slots explain counts as error: part of it may be exclusive after all.
        released_GD = rows_GD * (inside_G & ~keep_G)[:, None]
        planted = self._plantable(
            sampled, evidence, side, 0 if last else room, unit_GD[keep_G], released_GD, worth_F[numbers_G[keep_G]]
        )
        # Too rare to judge: it may stay while it can still be judged and nothing better is known for its slot, but does
        # not end as exclusive without evidence.
        unjudged_G = inside_G & ~evidence.known_G & (evidence.fires_G > 0) & (not last)
        unjudged = _best(unjudged_G, worth_F[numbers_G], room - len(planted))
        keep_G &= inside_G
        keep_G[unjudged] = True
        # At the end, what does not stay moves: nothing new would be trained in its place. Before, a feature whose
        # direction is planted anew is replaced by that.
        replaced_G = _resembles(unit_GD, planted.decoder_MD)
        moves_G = torch.full_like(keep_G, last) | (evidence.known_G & ~evidence.exclusive_G & ~replaced_G)
        moved_G = inside_G & ~keep_G & moves_G
        return _Decision(
            kept=numbers_G[keep_G].tolist(),
            promoted=promoted,
            moved=numbers_G[moved_G].tolist(),
            gone=int((inside_G & ~keep_G & ~moved_G).sum()),
            unjudged=len(unjudged),
            planted=planted,
        )

    def _plantable(
        self,
        sampled: Sample,
        evidence: Evidence,
        side: str,
        room: int,
        kept_GD: torch.Tensor,
        released_GD: torch.Tensor,
        worth_G: torch.Tensor,
    ) -> Candidates:
        trainer = self._trainer
        if room <= 0:
            decoder = trainer.crosscoder.decoder(side)
            empty = decoder.new_zeros(0)
            return Candidates(decoder[:0], decoder[:0], empty, empty)
        random = torch.Generator().manual_seed((trainer.recipe.seed * _SEED + trainer.step) * 2 + (side == "b"))
        found = prospect(
            sampled,
            evidence,
            side,
            _PER_SLOT * room + _BESIDES,
            kept_GD=kept_GD,
            released_GD=released_GD,
            decoder_norm=_typical_norm(trainer.crosscoder),
            random=random,
        ).take(slice(room))
        # Chance finds explain next to nothing, and disturb the features that they resemble.
        typical = torch.cat([worth_G[worth_G > 0], found.gain_M]).median()
        return found.take(found.gain_M > _LEAST_GAIN * typical)

    def _order(
        self, decisions: dict[str, _Decision], worth_F: torch.Tensor, moved_gain_F: torch.Tensor
    ) -> tuple[dict[str, list[int]], int]:
        """The new partitions, and how many shared features had to go: those that explain least."""
        crosscoder = self._trainer.crosscoder
        order = {
            EXCLUSIVE[side]: one.kept + one.promoted + [FRESH] * len(one.planted) for side, one in decisions.items()
        }
        promoted = {i for one in decisions.values() for i in one.promoted}
        shared = crosscoder.slices["shared"]
        stay = [i for i in range(shared.start, shared.stop) if i not in promoted]
        moved_a, moved_b = decisions["a"].moved, decisions["b"].moved
        total = crosscoder.n_features - len(order["A"]) - len(order["B"])
        dropped = max(0, len(stay) + len(moved_a) + len(moved_b) - total)
        # A moved feature is worth what it explains where it was, and what it will explain in the other model.
        worth = (worth_F + moved_gain_F).tolist()
        least = set(sorted(moved_a + stay + moved_b, key=worth.__getitem__)[:dropped])
        for one in decisions.values():
            one.moved = [i for i in one.moved if i not in least]
        order["shared"] = [i for i in decisions["a"].moved + stay + decisions["b"].moved if i not in least]
        order["shared"] += [FRESH] * (total - len(order["shared"]))
        return order, dropped


class _Newcomers:
    """Weights of what changes its partition or is new: worked out before the rearrangement, filled in after it."""

    def __init__(
        self, trainer: Trainer, sampled: Sample, decisions: dict[str, _Decision], order: dict[str, list[int]]
    ) -> None:
        self._trainer = trainer
        self._sampled = sampled
        self._decisions = decisions
        self._order = order
        crosscoder = trainer.crosscoder
        # A moved feature's decoder in the model that did not have it: what its activation explains of the error there.
        self._moved_rows = {
            side: sampled.fe[OTHER[side]][one.moved] / sampled.ff_F[one.moved, None].clamp_min(_TINY)
            for side, one in decisions.items()
        }
        # A promoted feature loses what it read from the other model, but for its mean.
        self._lost_bias = {}
        for side, one in decisions.items():
            other = OTHER[side]
            w_enc = crosscoder.encoder(other)
            mean_D = torch.cat(sampled.x(other)).mean(dim=0)
            rows = torch.tensor(one.promoted, dtype=torch.long, device=w_enc.device) - crosscoder.sees(other).start
            self._lost_bias[side] = crosscoder.encoder_share * (w_enc[rows] @ mean_D)

    def fill(self) -> None:
        crosscoder, order = self._trainer.crosscoder, self._order
        shared_start = crosscoder.config.n_a_only
        n_fresh = order["shared"].count(FRESH)
        fresh_start = shared_start + len(order["shared"]) - n_fresh
        for side, one in self._decisions.items():
            start = shared_start if side == "a" else fresh_start - len(one.moved)
            moved = slice(start, start + len(one.moved))
            self._rows("w_enc", side, moved).div_(crosscoder.encoder_share)
            self._rows("w_dec", OTHER[side], moved).copy_(self._moved_rows[side])
            first = crosscoder.slices[EXCLUSIVE[side]].start + len(one.kept)
            promoted = slice(first, first + len(one.promoted))
            self._rows("w_enc", side, promoted).mul_(crosscoder.encoder_share)
            crosscoder.b_enc.data[promoted] += self._lost_bias[side]
            planted = slice(promoted.stop, promoted.stop + len(one.planted))
            self._rows("w_enc", side, planted).copy_(one.planted.encoder_MD)
            self._rows("w_dec", side, planted).copy_(one.planted.decoder_MD)
            crosscoder.b_enc.data[planted] = one.planted.bias_M
        if n_fresh:
            self._fill_fresh(slice(fresh_start, fresh_start + n_fresh))

    def _fill_fresh(self, fresh: slice) -> None:
        """New shared features start at directions in which both models err at once."""
        crosscoder, recipe = self._trainer.crosscoder, self._trainer.recipe
        count = fresh.stop - fresh.start
        random = torch.Generator().manual_seed((recipe.seed * _SEED + self._trainer.step) * 2 + 2 * _SEED)
        found = prospect_shared(
            self._sampled, _PER_SLOT * count + _BESIDES, decoder_norm=_typical_norm(crosscoder), random=random
        ).take(slice(count))
        filled = slice(fresh.start, fresh.start + len(found))
        width_a = crosscoder.config.width_a
        for side, columns in (("a", slice(width_a)), ("b", slice(width_a, None))):
            self._rows("w_dec", side, filled).copy_(found.decoder_MD[:, columns])
            self._rows("w_enc", side, filled).copy_(found.encoder_MD[:, columns] / crosscoder.encoder_share)
        crosscoder.b_enc.data[filled] = found.bias_M

    def _rows(self, name: str, side: str, features: slice) -> torch.Tensor:
        """A view of the weights of some features on a side."""
        crosscoder = self._trainer.crosscoder
        offset = crosscoder.sees(side).start
        weights: torch.Tensor = getattr(crosscoder, f"{name}_{side}").data
        return weights[features.start - offset : features.stop - offset]


def _worth(crosscoder: Crosscoder, sampled: Sample) -> torch.Tensor:
    """(F,) squared error per pair, over both sides, that each feature alone takes away: ‖e + f d‖² - ‖e‖²."""
    worth_F = torch.zeros_like(sampled.ff_F)
    for side, w_dec in (("a", crosscoder.w_dec_a), ("b", crosscoder.w_dec_b)):
        own = crosscoder.sees(side)
        worth_F[own] += 2 * (sampled.fe[side][own] * w_dec).sum(dim=1) + sampled.ff_F[own] * w_dec.square().sum(dim=1)
    return worth_F / sum(len(x_a) for x_a, _ in sampled.batches)


def _gain_if_moved(sampled: Sample, decisions: dict[str, _Decision]) -> torch.Tensor:
    """(F,) squared error per pair that a moved feature will explain in the model that did not have it; else 0."""
    gain_F = torch.zeros_like(sampled.ff_F)
    for side, one in decisions.items():
        fe_GD, ff_G = sampled.fe[OTHER[side]][one.moved], sampled.ff_F[one.moved].clamp_min(_TINY)
        gain_F[one.moved] = fe_GD.square().sum(dim=1) / ff_G
    return gain_F / sum(len(x_a) for x_a, _ in sampled.batches)


def _typical_norm(crosscoder: Crosscoder) -> float:
    """Median norm of the features' decoders over both models: an exclusive feature has in one what others have in two.

    With a shorter decoder its activations would be larger than those of others, and it would be selected too often.
    """
    norm_F = torch.hypot(*crosscoder.decoder_norms().values())
    return float(norm_F[norm_F > 0].median())


def _resembles(unit_GD: torch.Tensor, rows_MD: torch.Tensor) -> torch.Tensor:
    """Mask (G,): points the same way as one of the rows."""
    unit_MD = rows_MD / rows_MD.norm(dim=1, keepdim=True).clamp_min(_TINY)
    return (unit_GD @ unit_MD.T > SAME_COSINE).any(dim=1)


def _best(mask_G: torch.Tensor, worth_G: torch.Tensor, most: int) -> torch.Tensor:
    """Numbers of those of the mask that explain most."""
    numbers = mask_G.nonzero()[:, 0]
    return numbers[worth_G[numbers].argsort(descending=True)[: max(0, most)]]


def _without_twins(keep_G: torch.Tensor, unit_GD: torch.Tensor, worth_G: torch.Tensor) -> torch.Tensor:
    """Of kept features that point the same way, only the one that explains most."""
    same_GG = (unit_GD @ unit_GD.T > SAME_COSINE).cpu()
    left_G = keep_G.cpu()
    for index in worth_G.argsort(descending=True).tolist():
        if left_G[index]:
            left_G &= ~same_GG[index]
            left_G[index] = True
    return left_G.to(keep_G.device)
