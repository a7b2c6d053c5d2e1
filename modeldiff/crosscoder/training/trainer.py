"""One training run: the crosscoder, Adam, the counters, and what one batch does to them.

All randomness is in the initial weights and in the order of the batches: `update` itself draws nothing.

Legend: B pairs, F features, K kept entries of the batch, Da, Db widths, Z dead features.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from modeldiff.console import say
from modeldiff.crosscoder.audits.auditor import Auditor
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.fast.code import decode_kept
from modeldiff.crosscoder.fast.flat import places_of
from modeldiff.crosscoder.fast.forward import PRE_ACTIVATIONS, Forward, Pass, Smallest, SparseForward
from modeldiff.crosscoder.fast.rooms import Rooms
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.selection import Scores, ThresholdAverage, pooled_topk, score_weights
from modeldiff.crosscoder.training.adam import Adam
from modeldiff.crosscoder.training.losses import auxk_loss, inliers, reconstruction_gradient, reconstruction_loss
from modeldiff.crosscoder.training.metrics import Quality, by_partition
from modeldiff.crosscoder.training.recipe import Recipe
from modeldiff.crosscoder.tying import tie_gradients, tie_rows
from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace.ranks import Ranks

# A partition of which no feature was active for this share of the run is reported.
_STARVING_SHARE = 0.02


class Trainer:
    """Trains a crosscoder batch by batch.

    Attributes:
        step: batches done.
        since_active_F: int64, pairs since each feature was last active.
        threshold: average of the smallest kept scores.
        threshold_designated: the same for designated features.
        left_out: pairs left out as outliers so far.
        auxk_nan: steps whose auxiliary loss was not a number and was set to 0 (paper B.1.5).
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        recipe: Recipe,
        *,
        warn: bool = True,
        forward: Forward | None = None,
        shards: Shards | None = None,
    ) -> None:
        """
        Args:
            warn: say when a partition starves.
            forward: another way than the sparse one to run a batch.
            shards: the ranks of the run; `crosscoder` is then this rank's part.
        """
        self.crosscoder = crosscoder
        self.recipe = recipe
        device = crosscoder.b_enc.device
        self.optimizer = Adam(crosscoder.parameters(), recipe.lr, recipe.betas)
        self.step = 0
        self.since_active_F = torch.zeros(crosscoder.n_features, dtype=torch.long, device=device)
        self.threshold = ThresholdAverage(recipe.threshold_window)
        self.threshold_designated = ThresholdAverage(recipe.threshold_window)
        self.left_out = 0
        self.auxk_nan = 0
        self.shards = shards or Shards(Ranks(), crosscoder.config)
        self._rooms = Rooms(recipe.batch)
        self._forward = forward or SparseForward(self.shards, self._rooms)
        self._warns = warn
        self._starving: set[str] = set()
        self.auditor = Auditor(self)

    @torch.no_grad()
    def update(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> dict[str, Any] | None:
        """Train on a batch of raw activations of any dtype.

        Returns:
            A line for training.jsonl, when this step is one that is logged: every `log_every` steps, those that end
            with an audit, and the last one.

        Raises:
            DamagedError: activations that are not finite.
            InputError: the training diverged.
        """
        crosscoder, recipe = self.crosscoder, self.recipe
        x_a, x_b = self._without_outliers(x_a_BDa, x_b_BDb)
        logged = self.step % recipe.log_every == 0 or self.step in (recipe.steps - 1, recipe.next_audit(self.step))
        done = self._forward(crosscoder, x_a, x_b, self._select)
        quality = self._quality(done) if logged else {}
        e_a, e_b = done.errors()
        reconstruction = reconstruction_loss(e_a, e_b, recipe.loss)
        g_a = reconstruction_gradient(e_a, recipe.loss, self._spare("a", e_a))
        g_b = reconstruction_gradient(e_b, recipe.loss, self._spare("b", e_b))
        self._forward.backward(crosscoder, done, g_a, g_b)
        auxk = self._auxk(e_a, e_b, done.x)
        if auxk is not None:  # adds to the gradients that the other one writes
            with torch.enable_grad():
                # Given a gradient to begin with, torch would import sympy, 34 MiB.
                (recipe.auxk_alpha * auxk).backward()

        slots_F = done.kept.start_F1.diff()
        self.since_active_F += len(x_a)
        self.since_active_F.masked_fill_(slots_F > 0, 0)
        if self.step >= recipe.threshold_start:
            self.threshold.update(done.smallest[0])
            self.threshold_designated.update(done.smallest[1])
        line = None
        if logged:
            line = self._line(reconstruction, auxk, slots_F, len(x_a)) | quality
            if self._warns:
                self._warn_of_starving()
        self._descend(reconstruction)
        audit = self.auditor.take(x_a, x_b)
        if line is not None:
            line["audit"] = audit
        self.step += 1
        return line

    def finish(self) -> None:
        """Free what only further steps would need: gradients and Adam's moments."""
        self.crosscoder.zero_grad()
        self.optimizer.state.clear()
        self._rooms = Rooms(self.recipe.batch)
        self._forward = SparseForward(self.shards, self._rooms)

    def _spare(self, side: str, x_BD: torch.Tensor) -> torch.Tensor:
        """Memory like `x_BD`, until the next batch or until it is asked for again."""
        return self._rooms.inside(PRE_ACTIVATIONS, f"spare_{side}", x_BD)

    def _without_outliers(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A raw batch in normalised units."""
        x_a, x_b = self.crosscoder.normalise(x_a_BDa, x_b_BDb, self._rooms)
        keep_B = inliers(x_a, x_b, self.recipe.outlier_factor)
        if bool(keep_B.all()):
            return x_a, x_b
        if not (x_a.isfinite().all() and x_b.isfinite().all()):  # a norm that is not a number is never an inlier
            raise DamagedError(
                f"the activations of step {self.step} hold values that are not finite: harvest them again"
            )
        self.left_out += len(x_a) - int(keep_B.sum())
        keep_B = keep_B.to(x_a_BDa.device)
        return self.crosscoder.normalise(x_a_BDa[keep_B], x_b_BDb[keep_B], self._rooms)

    def _select(self, scores: Scores) -> tuple[torch.Tensor, Smallest]:
        """Flat indices of the kept entries, and the smallest kept scores (see `pooled_topk`)."""
        count = round(self.recipe.k_at(self.step) * len(scores.pre_BF))
        if self.shards.alone:
            return pooled_topk(scores, count, self.crosscoder.config)
        flat_K, smallest = self.shards.top(scores, count)
        return flat_K, (smallest, None)

    @torch.no_grad()
    def code(self, pre_BF: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(f_BF, smallest score kept) of pre-activations, selected as in training at this step."""
        kept_K, (smallest, _) = self._select(Scores(pre_BF, None, score_weights(self.crosscoder)))
        f_BF = torch.zeros_like(pre_BF)
        f_BF.view(-1)[kept_K] = pre_BF.view(-1)[kept_K]
        return f_BF, smallest or 0.0

    def dead(self) -> torch.Tensor:
        """Mask (F,) of the features that were not active for `dead_pairs` pairs."""
        return self.since_active_F >= self.recipe.dead_pairs

    def _quality(self, done: Pass) -> dict[str, dict[str, float]]:
        crosscoder, biases = self.crosscoder, (self.crosscoder.b_dec_a, self.crosscoder.b_dec_b)
        shared, column_K = crosscoder.slices["shared"], done.kept.column_K
        shared_K = torch.where((column_K >= shared.start) & (column_K < shared.stop), done.f_K, 0.0)
        room = (self._spare("a", done.xhat_a), self._spare("b", done.xhat_b))
        decoded = decode_kept(shared_K, crosscoder.w_dec_a, crosscoder.w_dec_b, done.kept, room)
        xhat_shared = [self.shards.sum(xhat_BD).add_(bias_D) for xhat_BD, bias_D in zip(decoded, biases, strict=True)]
        quality = Quality(crosscoder)
        quality.add(done.x, (done.xhat_a, done.xhat_b), (xhat_shared[0], xhat_shared[1]))
        return quality.figures()

    def _auxk(self, e_a: torch.Tensor, e_b: torch.Tensor, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor | None:
        """The auxiliary loss, with autograd; None: there is none in this step."""
        recipe = self.recipe
        if recipe.auxk_alpha == 0:
            return None
        dead_Z = places_of(self.dead())
        if self.shards.number(len(dead_Z)) == 0:
            return None
        with torch.enable_grad():
            loss = auxk_loss(
                self.crosscoder,
                dead_Z,
                recipe.auxk,
                e_a,
                e_b,
                inputs=x if recipe.auxk_input == "input" else None,
                normalised=recipe.loss == "norm",
                shards=self.shards,
            )
        if bool(loss.isnan()):
            self.auxk_nan += 1
            return None
        return loss

    def _descend(self, reconstruction: torch.Tensor) -> None:
        """Move the weights along their gradients."""
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr_at(self.step)
        if self.crosscoder.config.tie != "none":
            tie_gradients(self.crosscoder)
        norm = self._gradient_norm()
        if float(norm) > self.recipe.clip:
            torch.nn.utils.clip_grads_with_norm_(self.crosscoder.parameters(), self.recipe.clip, norm)
        if not math.isfinite(float(reconstruction) + float(norm)):
            raise InputError(
                f"training diverged at step {self.step}: the loss or its gradient is not finite; "
                f"use a smaller --lr (now {self.recipe.lr:.2g})"
            )
        self.optimizer.step()
        if self.crosscoder.config.tie != "none":
            tie_rows(self.crosscoder)

    def _gradient_norm(self) -> torch.Tensor:
        if self.shards.alone:
            parameters = self.optimizer.param_groups[0]["params"]
            return _norm([one.grad for one in parameters if one.grad is not None])
        gradients = {n: p.grad for n, p in self.crosscoder.named_parameters() if p.grad is not None}
        # The decoder's biases are the same on all ranks, and count once.
        biases = [gradients.pop(name) for name in ("b_dec_a", "b_dec_b")]
        squares = self.shards.total(_norm(list(gradients.values())).square())
        return (squares + _norm(biases).square()).sqrt()

    def by_partition(self, value_F: torch.Tensor) -> dict[str, float]:
        """Sum of a value per feature over each partition, over all ranks."""
        sums = by_partition(self.crosscoder, value_F)
        total = self.shards.total(torch.tensor(list(sums.values()), dtype=torch.float64))
        return dict(zip(sums, total.tolist(), strict=True))

    def _line(
        self,
        reconstruction: torch.Tensor,
        auxk: torch.Tensor | None,
        slots_F: torch.Tensor,
        rows: int,
    ) -> dict[str, Any]:
        active = self.by_partition(slots_F)
        total = max(1.0, sum(active.values()))
        return {
            "step": self.step,
            "pairs": (self.step + 1) * self.recipe.batch,
            "left_out": self.left_out,
            "k": self.recipe.k_at(self.step),
            "lr": self.recipe.lr_at(self.step),
            "loss": float(reconstruction if auxk is None else reconstruction + self.recipe.auxk_alpha * auxk),
            "reconstruction": reconstruction.item(),
            "auxk": None if auxk is None else auxk.item(),
            "threshold": self.threshold.value,
            "features": {name: int(n) for name, n in self.by_partition(torch.ones_like(slots_F)).items()},
            "l0": {name: count / rows for name, count in active.items()},
            "slots": {name: count / total for name, count in active.items()},
            "dead": {name: int(count) for name, count in self.by_partition(self.dead()).items()},
        }

    def _warn_of_starving(self) -> None:
        recipe = self.recipe
        limit = max(_STARVING_SHARE * recipe.steps, 10) * recipe.batch
        for name, features in self.crosscoder.slices.items():
            if name in self._starving or self.shards.number(features.stop - features.start) == 0:
                continue
            since_F = self.since_active_F[features]
            since = self.shards.least(float(since_F.min()) if len(since_F) else math.inf)
            if since < limit:
                continue
            self._starving.add(name)
            say(
                f"warning: no {name} feature has been active for {int(since):,} pairs (step {self.step}): "
                f"see --selection (now {self.crosscoder.config.selection}), --dead-share, --k-start"
            )


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Of all of them as one vector; as torch.nn.utils.get_total_norm, which first sorts them by device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
