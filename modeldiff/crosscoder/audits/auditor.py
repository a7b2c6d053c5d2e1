"""Audits during training: exclusive features that the other model predicts become shared, and directions that it does
not predict are planted in their place.

A DFC fills its exclusive partitions with whatever lowers the error, in good part concepts that both models have. An
audit judges every exclusive feature on the last pairs before it (judging.py). The predictable ones become shared. The
slots that this frees are planted with directions that the other model does not predict (candidates.py), up to the
partition's first size, or go to the shared part. Shared features that one model has almost alone and that pass the
judgement become exclusive. So a partition ends as large as the evidence allows: with nothing to find, empty.

Legend: B pairs of a batch, F features, G features judged, M planted features, D width of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from modeldiff.crosscoder.audits.candidates import SAME_COSINE, Candidates, distinct, found_exclusive, found_shared
from modeldiff.crosscoder.audits.judging import Evidence, judge, sample
from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.fast.topk import Scores
from modeldiff.crosscoder.model import Both, Crosscoder
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES

# Directions looked for, for each slot that is free, and besides.
_PER_SLOT, _BESIDES = 4, 64
# A direction is planted when it explains this share of what the kept and the other found ones typically do.
_LEAST_GAIN = 0.25
_TINY = 1e-9
# Keeps these random numbers apart from those of the weights and of the data of the same seed.
_SEED = 1_000_003


class Auditor:
    """Collects the pairs (normalised units) before each audit, and audits: a `Callback` of the trainer."""

    def __init__(self) -> None:
        self._batches: list[Both] = []

    @property
    def collecting(self) -> bool:
        """A checkpoint at this moment would lose the pairs for the next audit."""
        return bool(self._batches)

    def __call__(self, trainer: Trainer, x: Both) -> dict[str, Any] | None:
        """After every step. Returns what an audit did, when the step ended in one."""
        recipe, step = trainer.recipe, trainer.step
        due = recipe.next_audit(step)
        if due is None or due - step >= recipe.audit_batches:
            return None
        self._batches.append(x)
        if due > step:
            return None
        batches, self._batches = self._batches, []
        return audit(trainer, batches, last=recipe.next_audit(step + 1) is None)


@dataclass
class _Decision:
    """What becomes of one side's judged features: numbers by fate (those kept without a judgement twice), and what is
    planted. In the order of the log."""

    kept: list[int]
    promoted: list[int]
    moved: list[int]
    gone: list[int]
    unjudged: list[int]
    planted: Candidates


@torch.no_grad()
def audit(trainer: Trainer, batches: Sequence[Both], *, last: bool) -> dict[str, Any]:
    """Judge, move, plant on batches in normalised units. The last audit, at the end of the run, only moves."""
    return _Audit(trainer, batches, last).run()


class _Audit:
    def __init__(self, trainer: Trainer, batches: Sequence[Both], last: bool) -> None:
        self.trainer, self.crosscoder, self.last = trainer, trainer.crosscoder, last
        self.sampled = sample(trainer.crosscoder, batches, self._code)
        self.pairs = sum(len(x_a) for x_a, _ in batches)
        self.worth_F = self._worth()

    def run(self) -> dict[str, Any]:
        crosscoder, trainer, sampled = self.crosscoder, self.trainer, self.sampled
        evidence = {side: judge(crosscoder, sampled, side) for side in SIDES}
        decisions = {side: self._decide(evidence[side], side) for side in SIDES}
        order, dropped = self._order(decisions)
        # A moved feature's decoder in the model that did not have it: what its activation explains of the error there.
        moved_rows = {
            side: sampled.fe[OTHER[side]][one.moved] / sampled.ff_F[one.moved, None].clamp_min(_TINY)
            for side, one in decisions.items()
        }
        # A promoted feature loses what it read from the other model, but for its mean.
        lost_bias = {}
        for side, one in decisions.items():
            read = self._rows("w_enc", OTHER[side], torch.tensor(one.promoted, dtype=torch.long))
            lost_bias[side] = crosscoder.encoder_share * (read @ torch.cat(sampled.x(OTHER[side])).mean(dim=0))
        former_F = rearrange(crosscoder, trainer.optimizer, order).to(trainer.since_active_F.device)
        self._fill(decisions, moved_rows, lost_bias, order["shared"])
        trainer.since_active_F = torch.where(former_F == FRESH, 0, trainer.since_active_F[former_F.clamp_min(0)])
        report: dict[str, Any] = {"dropped": dropped, "fresh": order["shared"].count(FRESH)}
        for side, one in decisions.items():
            counts = {field.name: len(getattr(one, field.name)) for field in fields(one)}
            report[EXCLUSIVE[side]] = {**counts, "reference": evidence[side].reference}
        return report

    def _code(self, pre_BF: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(f_BF, smallest score selected) of pre-activations, selected as in training at this step."""
        count = self.trainer.recipe.active_entries(self.trainer.step, len(pre_BF))
        flat_K, smallest = Scores(pre_BF, None, self.crosscoder.score_weights()).topk(count)
        f_BF = torch.zeros_like(pre_BF)
        f_BF.view(-1)[flat_K] = pre_BF.view(-1)[flat_K]
        return f_BF, 0.0 if smallest is None else float(smallest)

    def _worth(self) -> torch.Tensor:
        """(F,) squared error per pair, over both sides, that each feature alone takes away: ‖e + f d‖² - ‖e‖²."""
        sampled, worth_F = self.sampled, torch.zeros_like(self.sampled.ff_F)
        for side in SIDES:
            own, w_dec = self.crosscoder.sees(side), self.crosscoder.decoder(side)
            taken = 2 * (sampled.fe[side][own] * w_dec).sum(dim=1) + sampled.ff_F[own] * w_dec.square().sum(dim=1)
            worth_F[own] += taken
        return worth_F / self.pairs

    def _decide(self, evidence: Evidence, side: str) -> _Decision:
        crosscoder, numbers_G = self.crosscoder, self.sampled.judged[side]
        worth_G = self.worth_F[numbers_G]
        own = crosscoder.slices[EXCLUSIVE[side]]
        inside_G = (numbers_G >= own.start) & (numbers_G < own.stop)
        rows_GD = self._rows("w_dec", side, numbers_G)
        unit_GD = rows_GD / rows_GD.norm(dim=1, keepdim=True).clamp_min(_TINY)
        stands_G = evidence.exclusive_G & (evidence.fires_G <= self.sampled.frequent)
        # Of features that point the same way, only the one that explains most.
        keep_G = torch.zeros_like(stands_G)
        keep_G[distinct(unit_GD, worth_G, stands_G)] = True
        most = self.trainer.recipe.n_a_only if side == "a" else self.trainer.recipe.n_b_only
        room = most - int((keep_G & inside_G).sum())
        promoted = numbers_G[keep_G & ~inside_G].tolist()[: max(0, room)]
        room -= len(promoted)
        planted = Candidates.none(rows_GD)
        if room > 0 and not self.last:
            # What the features that lose their slots explain counts as error: part of it may be exclusive after all.
            released_GD = rows_GD * (inside_G & ~keep_G)[:, None]
            planted = found_exclusive(
                self.sampled,
                evidence,
                side,
                _PER_SLOT * room + _BESIDES,
                kept_GD=unit_GD[keep_G],
                released_GD=released_GD,
                decoder_norm=_typical_norm(crosscoder),
                random=self._random(int(side == "b")),
            ).take(slice(room))
            # Chance finds explain next to nothing, and disturb the features that they resemble.
            kept_worth = worth_G[keep_G]
            typical = torch.cat([kept_worth[kept_worth > 0], planted.gain_M]).median()
            planted = planted.take(planted.gain_M > _LEAST_GAIN * typical)
        # Too rare to judge: it may stay while it can still be judged and nothing better is known for its slot, but does
        # not end as exclusive without evidence.
        unjudged = (inside_G & ~evidence.known_G & (evidence.fires_G > 0) & (not self.last)).nonzero()[:, 0]
        best = worth_G[unjudged].argsort(descending=True)[: max(0, room - len(planted))]
        unjudged = unjudged[best]
        keep_G &= inside_G
        keep_G[unjudged] = True
        # At the end, what does not stay moves: nothing new would be trained in its place. Before, a feature whose
        # direction is planted anew is replaced by that.
        planted_MD = planted.decoder_MD / planted.decoder_MD.norm(dim=1, keepdim=True).clamp_min(_TINY)
        replaced_G = (unit_GD @ planted_MD.T > SAME_COSINE).any(dim=1)
        moves_G = torch.full_like(keep_G, self.last) | (evidence.known_G & ~evidence.exclusive_G & ~replaced_G)
        moved_G = inside_G & ~keep_G & moves_G
        return _Decision(
            kept=numbers_G[keep_G].tolist(),
            promoted=promoted,
            moved=numbers_G[moved_G].tolist(),
            gone=numbers_G[inside_G & ~keep_G & ~moved_G].tolist(),
            unjudged=numbers_G[unjudged].tolist(),
            planted=planted,
        )

    def _order(self, decisions: dict[str, _Decision]) -> tuple[dict[str, list[int]], int]:
        """The new partitions, and how many shared features had to go: those that explain least."""
        crosscoder, sampled = self.crosscoder, self.sampled
        order = {
            EXCLUSIVE[side]: one.kept + one.promoted + [FRESH] * len(one.planted) for side, one in decisions.items()
        }
        # A moved feature is worth what it explains where it was, and what it will explain in the other model.
        gain_F = torch.zeros_like(self.worth_F)
        for side, one in decisions.items():
            fe_GD, ff_G = sampled.fe[OTHER[side]][one.moved], sampled.ff_F[one.moved].clamp_min(_TINY)
            gain_F[one.moved] = fe_GD.square().sum(dim=1) / ff_G
        worth = (self.worth_F + gain_F / self.pairs).tolist()
        promoted = {i for one in decisions.values() for i in one.promoted}
        stay = [i for i in range(crosscoder.n_features)[crosscoder.slices["shared"]] if i not in promoted]
        shared = decisions["a"].moved + stay + decisions["b"].moved
        total = crosscoder.n_features - len(order["A"]) - len(order["B"])
        dropped = max(0, len(shared) - total)
        least = set(sorted(shared, key=worth.__getitem__)[:dropped])
        for one in decisions.values():
            one.moved = [i for i in one.moved if i not in least]
        order["shared"] = [i for i in shared if i not in least]
        order["shared"] += [FRESH] * (total - len(order["shared"]))
        return order, dropped

    def _fill(
        self,
        decisions: dict[str, _Decision],
        moved_rows: dict[str, torch.Tensor],
        lost_bias: dict[str, torch.Tensor],
        shared: list[int],
    ) -> None:
        """After the rearrangement: the weights of what changed its partition or is new."""
        crosscoder, fresh = self.crosscoder, shared.count(FRESH)
        shared_start = crosscoder.config.n_a_only
        fresh_start = shared_start + len(shared) - fresh
        for side, one in decisions.items():
            start = shared_start if side == "a" else fresh_start - len(one.moved)
            moved = slice(start, start + len(one.moved))
            self._rows("w_enc", side, moved).div_(crosscoder.encoder_share)
            self._rows("w_dec", OTHER[side], moved).copy_(moved_rows[side])
            first = crosscoder.slices[EXCLUSIVE[side]].start + len(one.kept)
            promoted = slice(first, first + len(one.promoted))
            self._rows("w_enc", side, promoted).mul_(crosscoder.encoder_share)
            crosscoder.b_enc.data[promoted] += lost_bias[side]
            planted = slice(promoted.stop, promoted.stop + len(one.planted))
            self._rows("w_enc", side, planted).copy_(one.planted.encoder_MD)
            self._rows("w_dec", side, planted).copy_(one.planted.decoder_MD)
            crosscoder.b_enc.data[planted] = one.planted.bias_M
        if fresh:
            # New shared features start at directions in which both models err at once.
            count, norm = _PER_SLOT * fresh + _BESIDES, _typical_norm(crosscoder)
            found = found_shared(self.sampled, count, decoder_norm=norm, random=self._random(2 * _SEED))
            found = found.take(slice(fresh))
            filled = slice(fresh_start, fresh_start + len(found))
            width_a = crosscoder.config.width_a
            for side, columns in (("a", slice(width_a)), ("b", slice(width_a, None))):
                self._rows("w_dec", side, filled).copy_(found.decoder_MD[:, columns])
                self._rows("w_enc", side, filled).copy_(found.encoder_MD[:, columns] / crosscoder.encoder_share)
            crosscoder.b_enc.data[filled] = found.bias_M

    def _rows(self, name: str, side: str, features: slice | torch.Tensor) -> torch.Tensor:
        """The weights of some features on a side; of a slice, a view."""
        offset = self.crosscoder.sees(side).start
        weights: torch.Tensor = getattr(self.crosscoder, f"{name}_{side}").data
        if isinstance(features, slice):
            return weights[features.start - offset : features.stop - offset]
        return weights[features.to(weights.device) - offset]

    def _random(self, stream: int) -> torch.Generator:
        seed = (self.trainer.recipe.seed * _SEED + self.trainer.step) * 2 + stream
        return torch.Generator().manual_seed(seed)


def _typical_norm(crosscoder: Crosscoder) -> float:
    """Median norm of the features' decoders over both models: an exclusive feature has in one what others have in two.
    With a shorter decoder its activations would be larger, and it would be selected too often."""
    norm_F = torch.hypot(*crosscoder.decoder_norms().values())
    return float(norm_F[norm_F > 0].median())


_WORDS = {"moved": "moved to shared", "gone": "gone", "promoted": "taken from shared", "planted": "planted"}


def audit_note(line: dict[str, Any]) -> str:
    """A line of training.jsonl with an audit, as "audit at step 475: A 5 kept, 3 moved to shared; B 4 kept"."""
    parts = []
    for side in EXCLUSIVE.values():
        report = line["audit"][side]
        done = [f", {report[what]} {words}" for what, words in _WORDS.items() if report[what]]
        parts.append(f"{side} {report['kept']} kept{''.join(done)}")
    return f"audit at step {line['step']}: {'; '.join(parts)}"


def audit_metrics(lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """From training.jsonl, by exclusive partition: features moved, promoted and planted in the whole run, and how many
    the last audit kept, and kept without a judgement. None without audits."""
    reports = [line["audit"] for line in lines if line["audit"]]
    if not reports:
        return None
    metrics: dict[str, Any] = {"audits": len(reports)}
    for side in EXCLUSIVE.values():
        totals = {what: sum(report[side][what] for report in reports) for what in ("moved", "promoted", "planted")}
        metrics[side] = totals | {what: reports[-1][side][what] for what in ("kept", "unjudged")}
    return metrics
