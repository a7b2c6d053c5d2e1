"""One training run: the crosscoder, Adam, the counters, and what one batch does to them.

All randomness is in the initial weights and in the order of the batches: `update` itself draws nothing.

Legend: B pairs, F features, K active entries of the batch, Da, Db widths, Z dead features.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from modeldiff.console import say
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.fast.entries import Entries
from modeldiff.crosscoder.fast.flat import places_of
from modeldiff.crosscoder.fast.scores import Scores
from modeldiff.crosscoder.fast.step import Both, Pass, SparseStep
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.selection import ThresholdAverage
from modeldiff.crosscoder.training.adam import Adam
from modeldiff.crosscoder.training.losses import auxk_loss, inliers, reconstruction_gradient, reconstruction_loss
from modeldiff.crosscoder.training.metrics import Quality, by_partition
from modeldiff.crosscoder.training.recipe import Recipe
from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace.ranks import Ranks

# A partition of which no feature was active for this share of the run is reported.
_STARVING_SHARE = 0.02


class Step(Protocol):
    """A way to run a batch, activations in normalised units, and the way back."""

    def forward(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, count: int) -> Pass:
        """Select `count` active entries, and reconstruct from them."""

    def decode(self, entries: Entries, f_K: torch.Tensor) -> Both:
        """Reconstructions of a code."""

    def backward(self, x: Both, done: Pass, g: Both) -> None:
        """Set `grad` of every parameter, from a loss's gradients in the two reconstructions."""


class Callback(Protocol):
    """What happens after a step, beside the training itself."""

    def __call__(self, trainer: Trainer, x: Both) -> dict[str, Any] | None:
        """After the optimizer's step, with its batch; what it returns is logged as "audit"."""


class Trainer:
    """Trains a crosscoder batch by batch.

    Attributes:
        step: batches done.
        since_active_F: int64, pairs since each feature was last active.
        threshold: average of the smallest scores that were selected.
        threshold_designated: the same for designated features.
        left_out: pairs left out as outliers so far.
        auxk_nan: steps whose auxiliary loss was not a number and was set to 0 (paper B.1.5).
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        recipe: Recipe,
        *,
        shards: Shards | None = None,
        sparse: Step | None = None,
        callback: Callback | None = None,
        warn: bool = True,
    ) -> None:
        """
        Args:
            shards: the ranks of the run; `crosscoder` is then this rank's part.
            sparse: another way than the sparse one to run a batch.
            warn: say when a partition starves.
        """
        self.crosscoder, self.recipe, self.callback = crosscoder, recipe, callback
        self.shards = shards or Shards(Ranks(), crosscoder.config)
        self.sparse = sparse or SparseStep(crosscoder, self.shards)
        self.optimizer = Adam(crosscoder.parameters(), recipe.lr, recipe.betas)
        self.step = 0
        self.since_active_F = torch.zeros(crosscoder.n_features, dtype=torch.long, device=crosscoder.b_enc.device)
        self.threshold = ThresholdAverage(recipe.threshold_window)
        self.threshold_designated = ThresholdAverage(recipe.threshold_window)
        self.left_out = self.auxk_nan = 0
        self._warns = warn
        self._starving: set[str] = set()

    @torch.no_grad()
    def update(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> dict[str, Any] | None:
        """Train on a batch of raw activations of any dtype.

        Returns:
            A line for training.jsonl, when this step is one that is logged.

        Raises:
            DamagedError: activations that are not finite.
            InputError: the training diverged.
        """
        x = self._inliers(x_a_BDa, x_b_BDb)
        done = self.sparse.forward(*x, self._count(len(x[0])))
        e = x[0] - done.xhat[0], x[1] - done.xhat[1]
        loss = reconstruction_loss(*e, self.recipe.loss)
        g = reconstruction_gradient(e[0], self.recipe.loss), reconstruction_gradient(e[1], self.recipe.loss)
        self.sparse.backward(x, done, g)
        auxk = self._auxk(x, e)
        if auxk is not None:  # adds to the gradients
            with torch.enable_grad():
                (self.recipe.auxk_alpha * auxk).backward()
        firings_F = done.entries.start_F1.diff()
        self._note_firings(firings_F, done.smallest, len(x[0]))
        line = self._line(x, done, firings_F, loss, auxk) if self.recipe.is_logged(self.step) else None
        self._descend(loss)
        audit = self.callback(self, x) if self.callback else None
        if line is not None:
            line["audit"] = audit
        self.step += 1
        return line

    def _inliers(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> Both:
        """A raw batch in normalised units, outliers left out."""
        x_a, x_b = self.crosscoder.normalise(x_a_BDa, x_b_BDb)
        keep_B = inliers(x_a, x_b, self.recipe.outlier_factor)
        if bool(keep_B.all()):
            return x_a, x_b
        if not (x_a.isfinite().all() and x_b.isfinite().all()):  # a norm that is not a number is never an inlier
            raise DamagedError(
                f"the activations of step {self.step} hold values that are not finite: harvest them again"
            )
        self.left_out += len(x_a) - int(keep_B.sum())
        return x_a[keep_B], x_b[keep_B]

    def _count(self, pairs: int) -> int:
        """Active entries of a batch of so many pairs."""
        return round(self.recipe.k_at(self.step) * pairs)

    @torch.no_grad()
    def code(self, pre_BF: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(f_BF, smallest score selected) of pre-activations, selected as in training at this step."""
        scores = Scores(pre_BF, None, self.crosscoder.score_weights())
        flat_K, (smallest, _) = self.shards.select(scores, self._count(len(pre_BF)))
        f_BF = torch.zeros_like(pre_BF)
        f_BF.view(-1)[flat_K] = pre_BF.view(-1)[flat_K]
        return f_BF, smallest or 0.0

    def dead(self) -> torch.Tensor:
        """Mask (F,) of the features that were not active for `dead_pairs` pairs."""
        return self.since_active_F >= self.recipe.dead_pairs

    def _auxk(self, x: Both, e: Both) -> torch.Tensor | None:
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
                e,
                inputs=x if recipe.auxk_input == "input" else None,
                normalised=recipe.loss == "norm",
                shards=self.shards,
            )
        if bool(loss.isnan()):
            self.auxk_nan += 1
            return None
        return loss

    def _note_firings(self, firings_F: torch.Tensor, smallest: tuple[float | None, float | None], pairs: int) -> None:
        self.since_active_F += pairs
        self.since_active_F.masked_fill_(firings_F > 0, 0)
        if self.step >= self.recipe.threshold_start:
            self.threshold.update(smallest[0])
            self.threshold_designated.update(smallest[1])

    def _descend(self, loss: torch.Tensor) -> None:
        """Move the weights along their gradients."""
        self.optimizer.lr = self.recipe.lr_at(self.step)
        self.crosscoder.tie_gradients()
        norm = self._gradient_norm()
        if float(norm) > self.recipe.clip:
            clip_grads_with_norm_(self.crosscoder.parameters(), self.recipe.clip, norm)
        if not math.isfinite(float(loss) + float(norm)):
            raise InputError(
                f"training diverged at step {self.step}: the loss or its gradient is not finite; "
                f"use a smaller --lr (now {self.recipe.lr:.2g})"
            )
        self.optimizer.step()
        self.crosscoder.tie()

    def _gradient_norm(self) -> torch.Tensor:
        gradients = {n: p.grad for n, p in self.crosscoder.named_parameters() if p.grad is not None}
        if self.shards.alone:
            return get_total_norm(gradients.values())
        # The decoder's biases are the same on all ranks, and count once.
        biases = [gradients.pop(name) for name in ("b_dec_a", "b_dec_b")]
        squares = self.shards.total(get_total_norm(gradients.values()).square())
        return (squares + get_total_norm(biases).square()).sqrt()

    def by_partition(self, value_F: torch.Tensor) -> dict[str, float]:
        """Sum of a value per feature over each partition, over all ranks."""
        sums = by_partition(self.crosscoder, value_F)
        total = self.shards.total(torch.tensor(list(sums.values()), dtype=torch.float64))
        return dict(zip(sums, total.tolist(), strict=True))

    def _line(
        self,
        x: Both,
        done: Pass,
        firings_F: torch.Tensor,
        loss: torch.Tensor,
        auxk: torch.Tensor | None,
    ) -> dict[str, Any]:
        if self._warns:
            self._warn_of_starving()
        active = self.by_partition(firings_F)
        total = max(1.0, sum(active.values()))
        return {
            "step": self.step,
            "pairs": (self.step + 1) * self.recipe.batch,
            "left_out": self.left_out,
            "k": self.recipe.k_at(self.step),
            "lr": self.recipe.lr_at(self.step),
            "loss": float(loss if auxk is None else loss + self.recipe.auxk_alpha * auxk),
            "reconstruction": loss.item(),
            "auxk": None if auxk is None else auxk.item(),
            "threshold": self.threshold.value,
            "features": {name: int(n) for name, n in self.by_partition(torch.ones_like(firings_F)).items()},
            "l0": {name: count / len(x[0]) for name, count in active.items()},
            "slots": {name: count / total for name, count in active.items()},
            "dead": {name: int(count) for name, count in self.by_partition(self.dead()).items()},
            **self._quality(x, done),
        }

    def _quality(self, x: Both, done: Pass) -> dict[str, dict[str, float]]:
        shared, column_K = self.crosscoder.slices["shared"], done.entries.column_K
        shared_K = torch.where((column_K >= shared.start) & (column_K < shared.stop), done.f_K, 0.0)
        quality = Quality(self.crosscoder)
        quality.add(x, done.xhat, self.sparse.decode(done.entries, shared_K))
        return quality.figures()

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
