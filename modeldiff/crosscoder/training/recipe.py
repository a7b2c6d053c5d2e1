"""The numbers of one training run: the settings, with everything that was left out derived from the activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.errors import InputError

# The paper's ratios and schedule (2.6, B.1): k 200 at width 4096; k starts 5 times larger and falls during the first
# 5 % of the steps; two passes over the data; at most 1000 steps of warm-up. Its dictionary is 32 times the width, which
# a laptop does not train in minutes: 8 here.
_EXPANSION = 8
_WIDTH_PER_K = 20
_LEAST_K = 16
_K_START = 5
_ANNEAL_SHARE = 0.05
_PASSES = 2
_LEAST_STEPS = 2000
_MOST_WARMUP = 1000
# Of the public code (paper 3.1). On planted concepts (256 in widths 32 and 48, 192 features, k 5, 2500 steps of 512,
# one seed) it gives 1.8e-3 and an FVE of 0.740; 3e-4 gave 0.601, 6e-4 0.717, 3.7e-3 0.744, 7.4e-3 0.741.
_LR, _LR_FEATURES = 2e-4, 16384
_LOG_LINES = 200
# All audits but the closing one lie in this part of the run. Before it, decoders have hardly grown: features planted
# then (from 6 % on) kept short decoders and large activations, and fired two to three times too often.
# After it, what is planted has no time to settle: the learning rate falls.
_AUDITS_FROM, _AUDITS_TO = 0.15, 0.8
_AUDIT_PAIRS, _AUDIT_PAIRS_PER_WIDTH = 16_384, 16
_TIES: dict[str, Literal["none", "vectors", "norms"]] = {
    "dfc": "none",
    "standard": "none",
    "dsf-vectors": "vectors",
    "dsf-norms": "norms",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run in numbers. Steps are counted from 0; learning rate and k are functions of the step."""

    n_a_only: int
    n_shared: int
    n_b_only: int
    n_designated: int
    tie: Literal["none", "vectors", "norms"]
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
    betas: tuple[float, float]
    loss: Literal["squared", "norm"]
    auxk_alpha: float
    auxk: int
    auxk_input: Literal["error", "input"]
    outlier_factor: float
    """Pairs with a larger norm than this times the median are left out; infinite: none."""
    dead_pairs: int
    """A feature is dead when it was not active for this many pairs."""
    threshold_start: int
    threshold_window: float
    """Batches over which the inference threshold is averaged."""
    log_every: int
    seed: int
    audits: int
    """Times at which exclusive features are judged (auditor.py)."""
    audit_batches: int
    """Batches, the last ones before it, that an audit looks at."""

    def next_audit(self, step: int) -> int | None:
        """The first step from `step` on that ends with an audit, if one does; the last step does."""
        if self.audits == 0 or step >= self.steps:
            return None
        for audit in range(self.audits - 1):
            done = audit / max(1, self.audits - 2)
            at = round(self.steps * (_AUDITS_FROM + (_AUDITS_TO - _AUDITS_FROM) * done))
            if at >= step:
                return at
        return self.steps - 1

    def is_logged(self, step: int) -> bool:
        """Every `log_every` steps, those that end with an audit, and the last one."""
        return step % self.log_every == 0 or step in (self.steps - 1, self.next_audit(step))

    def k_at(self, step: int) -> float:
        """Active features per pair at a step: linear from k_start to k, then k (paper B.1.3)."""
        if step >= self.anneal_steps:
            return float(self.k)
        return self.k_start + (self.k - self.k_start) * step / self.anneal_steps

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear rise, constant, fall to 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = (self.steps - step) / self.decay_steps
        if self.decay == "none" or left >= 1:
            fall = 1.0
        elif self.decay == "linear":
            fall = left
        else:
            fall = (1 - math.cos(math.pi * left)) / 2
        return self.lr * rise * fall


def initial_config(
    settings: TrainSettings,
    recipe: Recipe,
    *,
    widths: tuple[int, int],
    median_norms: tuple[float, float],
    **names: str | int | None,
) -> CrosscoderConfig:
    """The crosscoder's config before training. Each side is scaled so that its median norm is sqrt((Da + Db) / 2)
    (paper B.1).

    Args:
        median_norms: of the raw activations of A and B.
        names: the fields that say where the activations come from (`model_a`, `layer_a`, ...).

    Raises:
        InputError: settings that do not fit together.
    """
    norm = math.sqrt(sum(widths) / 2)
    return CrosscoderConfig(
        width_a=widths[0],
        width_b=widths[1],
        n_a_only=recipe.n_a_only,
        n_shared=recipe.n_shared,
        n_b_only=recipe.n_b_only,
        n_designated=recipe.n_designated,
        tie=recipe.tie,
        designated_k=recipe.designated_k,
        k=recipe.k,
        selection=settings.selection,
        combine=settings.combine,
        scale_a=norm / median_norms[0],
        scale_b=norm / median_norms[1],
        **names,  # type: ignore[arg-type]
    )


def make_recipe(settings: TrainSettings, *, widths: tuple[int, int], pairs: int) -> Recipe:
    """The run that the settings mean for models of these widths and this many pairs to train on.

    Raises:
        InputError: the settings do not fit together, or not the activations.
    """
    mean_width = sum(widths) / 2
    features = settings.features or round(_EXPANSION * mean_width)
    n_exclusive = _exclusive(settings, features)
    tie = _TIES[settings.architecture]
    k, k_start = _k(settings, features, mean_width)
    if settings.batch > pairs:
        raise InputError(
            f"--batch must be at most the pairs there are to train on ({pairs}), found {settings.batch}: "
            "use a smaller batch, or harvest more pairs"
        )
    steps = _steps(settings, pairs)
    anneal = settings.anneal_steps if settings.anneal_steps is not None else round(_ANNEAL_SHARE * steps)
    return Recipe(
        n_a_only=n_exclusive,
        n_shared=features - 2 * n_exclusive,
        n_b_only=n_exclusive,
        n_designated=0 if tie == "none" else _designated(settings, features, widths),
        tie=tie,
        k=k,
        designated_k=1.0 if tie == "none" else settings.designated_k,
        k_start=min(features, k_start),
        anneal_steps=anneal,
        steps=steps,
        batch=settings.batch,
        lr=settings.lr or _LR / math.sqrt(features / _LR_FEATURES),
        warmup=settings.warmup if settings.warmup is not None else min(_MOST_WARMUP, round(_ANNEAL_SHARE * steps)),
        decay=settings.decay,
        decay_steps=max(1, round(settings.decay_share * steps)),
        clip=settings.clip,
        betas=(settings.betas[0], settings.betas[1]),
        loss=settings.loss,
        auxk_alpha=settings.auxk_alpha,
        auxk=settings.auxk or max(1, round(mean_width / 2)),
        auxk_input=settings.auxk_input,
        outlier_factor=settings.outlier_factor or math.inf,
        dead_pairs=min(settings.dead_tokens, round(settings.dead_share * steps * settings.batch)),
        threshold_start=_threshold_start(settings, steps, anneal),
        threshold_window=steps / 10,
        log_every=settings.log_every or max(1, steps // _LOG_LINES),
        seed=settings.seed,
        **_audits(settings, n_exclusive, steps, max(widths)),
    )


def _k(settings: TrainSettings, features: int, mean_width: float) -> tuple[int, int]:
    """(k, the k to start with)."""
    k = settings.k or min(features, max(_LEAST_K, round(mean_width / _WIDTH_PER_K)))
    if k > features:
        raise InputError(f"--k must be at most the number of features ({features}), found {k}")
    k_start = settings.k_start if settings.k_start is not None else _K_START * k
    if k_start < k:
        raise InputError(f"--k-start must be at least k ({k}), found {k_start}")
    return k, k_start


def _threshold_start(settings: TrainSettings, steps: int, anneal: int) -> int:
    start = settings.threshold_start if settings.threshold_start is not None else max(anneal, steps // 10)
    if start >= steps:
        raise InputError(f"--threshold-start must be below the number of steps ({steps}), found {start}")
    return start


def _exclusive(settings: TrainSettings, features: int) -> int:
    """Features of each exclusive partition."""
    if settings.architecture != "dfc" or settings.exclusive == 0:
        return 0
    count = round(settings.exclusive * features)
    if count == 0 or 2 * count >= features:
        raise InputError(
            f"--exclusive {settings.exclusive} of {features} features leaves a partition empty: ask for more features, "
            "another share, or --architecture standard"
        )
    return count


def _designated(settings: TrainSettings, features: int, widths: tuple[int, int]) -> int:
    """Features that are designated as shared."""
    if settings.architecture == "dsf-vectors" and widths[0] != widths[1]:
        raise InputError(
            f"--architecture dsf-vectors needs models of equal width, found {widths[0]} and {widths[1]}: use dsf-norms"
        )
    count = round(settings.designated * features)
    if count == 0 or max(1, settings.designated_k) * count >= features:
        raise InputError(
            f"--designated {settings.designated} of {features} features with --designated-k {settings.designated_k:g} "
            "leaves nothing to them or to the others: ask for more features, another share, or a smaller --designated-k"
        )
    return count


def _audits(settings: TrainSettings, n_exclusive: int, steps: int, width: int) -> dict[str, int]:
    """As many audits as asked for, or as there is room for: each needs its own pairs, in two halves at least."""
    pairs = settings.audit_pairs or max(_AUDIT_PAIRS, _AUDIT_PAIRS_PER_WIDTH * width)
    batches = max(2, math.ceil(pairs / settings.batch))
    # One batch to spare: in very short runs the closing audit would be left with a single batch.
    room = int((_AUDITS_TO - _AUDITS_FROM) * steps / (batches + 1))
    return {"audits": min(settings.audits, room) if n_exclusive else 0, "audit_batches": batches}


def _steps(settings: TrainSettings, pairs: int) -> int:
    if settings.steps is not None:
        return settings.steps
    if settings.tokens is not None:
        return max(1, settings.tokens // settings.batch)
    return max(_LEAST_STEPS, _PASSES * pairs // settings.batch)
