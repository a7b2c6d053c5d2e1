"""One training run: its numbers, the crosscoder, Adam, the counters, and what one batch does to them.

All randomness is in the initial weights and in the order of the batches: `update` itself draws nothing.

Legend: B pairs, F features, K active entries of the batch, Da, Db widths, Z dead features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.nn.utils import get_total_norm

from modeldiff.console import say
from modeldiff.crosscoder.config import Tie
from modeldiff.crosscoder.designated import tie, tie_gradients
from modeldiff.crosscoder.fast.sparse import OneProcess, Pass, SparseStep
from modeldiff.crosscoder.fast.topk import indices_of
from modeldiff.crosscoder.model import Both, Crosscoder
from modeldiff.crosscoder.training.adam import Adam
from modeldiff.crosscoder.training.losses import add_auxk, inliers, reconstruction_gradient, reconstruction_loss
from modeldiff.crosscoder.training.quality import Quality, by_partition
from modeldiff.errors import DamagedError, InputError
from modeldiff.sides import SIDES

# A partition of which no feature was active for this share of the run is reported.
_STARVING_SHARE = 0.02
_EMA_BETA = 0.999


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run in numbers (see recipe.py). Steps are counted from 0; learning rate and k depend on the step."""

    n_a_only: int
    n_shared: int
    n_b_only: int
    n_designated: int
    tie: Tie
    k: int
    designated_k: float
    k_start: int
    anneal_steps: int
    steps: int
    batch: int
    lr: float
    warmup: int
    decay: Literal["none", "linear", "cosine"]
    decay_steps: int
    clip: float
    loss: Literal["squared", "norm"]
    auxk_alpha: float
    auxk: int
    outlier_factor: float
    """Pairs with a larger norm than this times the median are left out; infinite: none."""
    dead_pairs: int
    """A feature is dead when it was not active for this many pairs."""
    threshold_start: int
    """Step from which the inference threshold is averaged."""
    log_every: int
    seed: int
    audit_steps: tuple[int, ...]
    """Steps that end with an audit of the exclusive features (auditor.py); the last step is one, if there are any."""
    audit_batches: int
    """Batches, the last ones before it, that an audit looks at."""

    def next_audit(self, step: int) -> int | None:
        """The first step from `step` on that ends with an audit."""
        return next((at for at in self.audit_steps if at >= step), None)

    def is_logged(self, step: int) -> bool:
        """Every `log_every` steps, those that end with an audit, and the last one."""
        return step % self.log_every == 0 or step == self.steps - 1 or step in self.audit_steps

    def k_at(self, step: int) -> float:
        """Active features per pair at a step: linear from k_start to k, then k (paper B.1.3)."""
        if step >= self.anneal_steps:
            return float(self.k)
        return self.k_start + (self.k - self.k_start) * step / self.anneal_steps

    def active_entries(self, step: int, pairs: int) -> int:
        return round(self.k_at(step) * pairs)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear rise, constant, fall to 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = (self.steps - step) / self.decay_steps
        if self.decay == "none" or left >= 1:
            return self.lr * rise
        return self.lr * rise * (left if self.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


class ThresholdAverage:
    """Moving average, without bias from its start, of the smallest active score of each batch: the threshold at
    inference. It remembers `window` batches, at most 1000 as the public code (paper 2.3)."""

    def __init__(self, window: float) -> None:
        self.beta = 1 - 1 / max(1.0, min(window, 1 / (1 - _EMA_BETA)))
        self.total = self.weight = 0.0

    def update(self, smallest: float | None) -> None:
        if smallest is not None:
            self.total = self.beta * self.total + (1 - self.beta) * smallest
            self.weight = self.beta * self.weight + (1 - self.beta)

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else 0.0


class Callback(Protocol):
    """What happens after the optimizer's step, with its batch; what it returns is logged as "audit"."""

    @property
    def collecting(self) -> bool: ...  # while true there is no checkpoint
    def __call__(self, trainer: Trainer, x: Both) -> dict[str, Any] | None: ...


class Trainer:
    """Trains a crosscoder batch by batch.

    Attributes:
        step: batches done.
        since_active_F: int64, pairs since each feature was last active.
        threshold, threshold_designated: averages of the smallest scores that were selected.
        left_out: pairs left out as outliers so far.
        auxk_nan: steps whose auxiliary loss was not a number and was set to 0 (paper B.1.5).
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        recipe: Recipe,
        *,
        processes: OneProcess | None = None,
        sparse: SparseStep | None = None,
        callback: Callback | None = None,
        warn: bool = True,
    ) -> None:
        """`crosscoder` is this process's part; `sparse`: another way to run a batch; `warn`: of starving."""
        self.crosscoder, self.recipe, self.callback = crosscoder, recipe, callback
        self.processes = processes or OneProcess()
        self.sparse = sparse or SparseStep(crosscoder, self.processes)
        self.optimizer = Adam(crosscoder, recipe.clip)
        self.step = self.left_out = self.auxk_nan = 0
        self.since_active_F = torch.zeros(crosscoder.n_features, dtype=torch.long, device=crosscoder.b_enc.device)
        self.threshold, self.threshold_designated = (ThresholdAverage(recipe.steps / 10) for _ in range(2))
        self._warns, self._starving = warn, set[str]()

    @torch.no_grad()
    def update(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> dict[str, Any] | None:
        """Train on a batch of raw activations of any dtype. Returns a line for training.jsonl if the step is logged.

        Raises:
            DamagedError: activations that are not finite.
            InputError: the training diverged.
        """
        x, dead = self._prepared(x_a_BDa, x_b_BDb)
        done = self.sparse.forward(*x, self.recipe.active_entries(self.step, len(x[0])))
        quality = self._quality(x, done) if self.recipe.is_logged(self.step) else None
        kind, (xhat_a, xhat_b), (spare_a, spare_b) = self.recipe.loss, done.xhat, done.spare
        e = torch.sub(x[0], xhat_a, out=xhat_a), torch.sub(x[1], xhat_b, out=xhat_b)
        g = reconstruction_gradient(e[0], kind, spare_a), reconstruction_gradient(e[1], kind, spare_b)
        loss = reconstruction_loss(*e, kind)
        norm, found = self._gradients(x, done, loss, g, e, dead)
        firings_F = done.entries.bags.start_G1.diff()
        self.since_active_F += len(x[0])
        self.since_active_F.masked_fill_(firings_F > 0, 0)
        if self.step >= self.recipe.threshold_start:
            self.threshold.update(found.get("smallest"))
            self.threshold_designated.update(found.get("smallest_designated"))
        line = None if quality is None else self._line(len(x[0]), firings_F, found) | quality
        if not math.isfinite(found["loss"] + found["norm"]):
            raise InputError(
                f"training diverged at step {self.step}: the loss or its gradient is not finite; "
                f"use a smaller --lr (now {self.recipe.lr:.2g})"
            )
        self.optimizer.step(self.recipe.lr_at(self.step), norm if found["norm"] > self.recipe.clip else None)
        if self.crosscoder.config.tie != "none":
            tie(self.crosscoder)
        audit = self.callback(self, x) if self.callback else None
        if line is not None:
            line["audit"] = audit
        self.step += 1
        return line

    def _prepared(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> tuple[Both, list[int]]:
        """A raw batch in normalised units, outliers left out; how many features are dead, and of these how many A and B
        have, where that matters. The device is waited for once."""
        x_a, x_b = self.crosscoder.normalise(x_a_BDa, x_b_BDb)
        masks = [*inliers(x_a, x_b, self.recipe.outlier_factor)]
        if self.recipe.auxk_alpha:
            dead_F = self.dead()
            masks += [dead_F, *(dead_F[self.crosscoder.sees(side)] for side in SIDES)]
        kept, finite, *dead = torch.stack([mask.sum() for mask in masks]).tolist()
        if finite < len(x_a) and not (x_a.isfinite().all() and x_b.isfinite().all()):
            raise DamagedError(f"activations of step {self.step} are not finite numbers: harvest them again")
        if kept == len(x_a):
            return (x_a, x_b), dead
        if not kept:
            raise InputError(f"all pairs of step {self.step} are outliers: use a larger --outlier-factor; 0 keeps all")
        self.left_out += len(x_a) - kept
        rows = indices_of(masks[0], kept)
        return (x_a.index_select(0, rows), x_b.index_select(0, rows)), dead

    def dead(self) -> torch.Tensor:
        return self.since_active_F >= self.recipe.dead_pairs

    def _gradients(
        self, x: Both, done: Pass, loss: torch.Tensor, g: Both, e: Both, dead: list[int]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Make the gradients. Returns their norm, and all that is to be known of the batch, for which the device is
        waited for once: `loss`, `norm`, and, where there are such, `auxk`, `total` and the smallest scores."""
        auxk_counts = True
        while True:
            self.sparse.backward(x, done, g)
            auxk = self._add_auxk(e, dead) if auxk_counts else None
            if self.crosscoder.config.tie != "none":
                tie_gradients(self.crosscoder)
            norm = self._gradient_norm()
            total = None if auxk is None else loss + self.recipe.auxk_alpha * auxk
            smallest, designated = done.smallest
            asked = {"loss": loss, "norm": norm, "auxk": auxk, "total": total}
            asked |= {"smallest": smallest, "smallest_designated": designated}
            there = {name: value for name, value in asked.items() if value is not None}
            found = dict(zip(there, torch.stack([*there.values()]).tolist(), strict=True))
            if not math.isnan(found.get("auxk", 0.0)):
                return norm, found
            self.auxk_nan += 1
            auxk_counts = False

    def _add_auxk(self, e: Both, dead: list[int]) -> torch.Tensor | None:
        """The auxiliary loss, its gradient added to what is there; None without dead features."""
        recipe = self.recipe
        if recipe.auxk_alpha == 0 or self.processes.number(dead[0]) == 0:
            return None
        return add_auxk(
            self.crosscoder, indices_of(self.dead(), dead[0]), dead[1:], recipe.auxk, e,
            weight=recipe.auxk_alpha, normalised=recipe.loss == "norm", processes=self.processes,
        )  # fmt: skip

    def _gradient_norm(self) -> torch.Tensor:
        if self.processes.world == 1:
            return get_total_norm([one.grad for one in self.crosscoder.parameters() if one.grad is not None])
        gradients = {n: p.grad for n, p in self.crosscoder.named_parameters() if p.grad is not None}
        # The decoder's biases are the same in all processes, and count once.
        biases = [gradients.pop(name) for name in ("b_dec_a", "b_dec_b")]
        squares = self.processes.sum(get_total_norm(gradients.values()).square())
        return (squares + get_total_norm(biases).square()).sqrt()

    def by_partition(self, value_F: torch.Tensor) -> dict[str, float]:
        sums = by_partition(self.crosscoder, value_F)
        total = self.processes.sum(torch.tensor(list(sums.values()), dtype=torch.float64))
        return dict(zip(sums, total.tolist(), strict=True))

    def _line(self, pairs: int, firings_F: torch.Tensor, found: dict[str, float]) -> dict[str, Any]:
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
            "loss": found.get("total", found["loss"]),
            "reconstruction": found["loss"],
            "auxk": found.get("auxk"),
            "threshold": self.threshold.value,
            "features": {name: int(n) for name, n in self.by_partition(torch.ones_like(firings_F)).items()},
            "l0": {name: count / pairs for name, count in active.items()},
            "slots": {name: count / total for name, count in active.items()},
            "dead": {name: int(count) for name, count in self.by_partition(self.dead()).items()},
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
            if name in self._starving or self.processes.number(features.stop - features.start) == 0:
                continue
            since_F = self.since_active_F[features]
            since = self.processes.least(float(since_F.min()) if len(since_F) else math.inf)
            if since >= limit:
                self._starving.add(name)
                say(
                    f"warning: no {name} feature has been active for {int(since):,} pairs (step {self.step}): "
                    f"see --selection (now {self.crosscoder.config.selection}), --dead-share, --k-start"
                )
