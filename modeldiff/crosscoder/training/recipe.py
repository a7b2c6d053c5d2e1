"""A training run in numbers: the settings, with everything that was left out derived from the activations."""

from __future__ import annotations

import math
from collections.abc import Mapping

from modeldiff.crosscoder.config import CrosscoderConfig, Tie
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.trainer import Recipe
from modeldiff.crosscoder.units import Measured
from modeldiff.errors import InputError

# The paper's ratios and schedule (2.6, B.1): k 200 at width 4096; k starts 5 times larger and falls during the first
# 5 % of the steps; two passes over the data; at most 1000 steps of warm-up. Its dictionary is 32 times the width, which
# a laptop does not train in minutes: 8 here. Not in the paper: the learning rate falls during the last fifth.
_EXPANSION = 8
_WIDTH_PER_K, _LEAST_K, _K_START = 20, 16, 5
_ANNEAL_SHARE, _MOST_WARMUP, _DECAY_SHARE = 0.05, 1000, 0.2
_PASSES, _LEAST_STEPS = 2, 2000
# Of the public code (paper 3.1). On planted concepts (256 in widths 32 and 48, 192 features, k 5, 2500 steps of 512,
# one seed) it gives 1.8e-3 and an FVE of 0.740; 3e-4 gave 0.601, 6e-4 0.717, 3.7e-3 0.744, 7.4e-3 0.741.
_LR, _LR_FEATURES = 2e-4, 16384
_LOG_LINES = 200
# All audits but the closing one lie in this part of the run. Before it, decoders have hardly grown: features planted
# then (from 6 % on) kept short decoders and large activations, and fired two to three times too often.
# After it, what is planted has no time to settle: the learning rate falls.
_AUDITS_FROM, _AUDITS_TO = 0.15, 0.8
_AUDIT_PAIRS, _AUDIT_PAIRS_PER_WIDTH = 16_384, 16
# From so many features on, exclusive ones are multiples of 64: the products of the shared ones lie behind those of A's,
# and a GPU's matrix units are fast with rows that begin at such places.
_LARGE, _ALIGNED = 4096, 64
_TIES: dict[str, Tie] = {"dfc": "none", "standard": "none", "dsf-vectors": "vectors", "dsf-norms": "norms"}


def initial_config(
    settings: TrainSettings, recipe: Recipe, measured: Mapping[str, Measured], **names: str | int | None
) -> CrosscoderConfig:
    """The crosscoder's config before training; `names`: the fields that say where the activations come from. Raises
    InputError for settings that do not fit together."""
    return CrosscoderConfig(
        n_a_only=recipe.n_a_only,
        n_shared=recipe.n_shared,
        n_b_only=recipe.n_b_only,
        n_designated=recipe.n_designated,
        tie=recipe.tie,
        designated_k=recipe.designated_k,
        k=recipe.k,
        selection=settings.selection,
        combine=settings.combine,
        **CrosscoderConfig.fitted(measured),
        **names,  # type: ignore[arg-type]
    )


def make_recipe(settings: TrainSettings, *, widths: tuple[int, int], pairs: int) -> Recipe:
    """The run that the settings mean for models of these widths and this many pairs to train on.

    Raises:
        InputError: the settings do not fit together, or not the activations.
    """
    mean_width = sum(widths) / 2
    features = settings.features or round(_EXPANSION * mean_width)
    n_exclusive, n_designated = _exclusive(settings, features), _designated(settings, features, widths)
    k, k_start = _k(settings, features, mean_width)
    if settings.batch > pairs:
        raise InputError(
            f"--batch must be at most the pairs there are to train on ({pairs}), found {settings.batch}: "
            "use a smaller batch, or harvest more pairs"
        )
    steps = settings.steps or max(_LEAST_STEPS, _PASSES * pairs // settings.batch)
    if settings.tokens is not None:
        steps = max(1, settings.tokens // settings.batch)
    anneal = settings.anneal_steps if settings.anneal_steps is not None else round(_ANNEAL_SHARE * steps)
    audit_pairs = settings.audit_pairs or max(_AUDIT_PAIRS, _AUDIT_PAIRS_PER_WIDTH * max(widths))
    audit_batches = max(2, math.ceil(audit_pairs / settings.batch))
    return Recipe(
        n_a_only=n_exclusive,
        n_shared=features - 2 * n_exclusive,
        n_b_only=n_exclusive,
        n_designated=n_designated,
        tie=_TIES[settings.architecture],
        k=k,
        designated_k=settings.designated_k if n_designated else 1.0,
        k_start=min(features, k_start),
        anneal_steps=anneal,
        steps=steps,
        batch=settings.batch,
        lr=settings.lr or _LR / math.sqrt(features / _LR_FEATURES),
        warmup=settings.warmup if settings.warmup is not None else min(_MOST_WARMUP, round(_ANNEAL_SHARE * steps)),
        decay=settings.decay,
        decay_steps=max(1, round(_DECAY_SHARE * steps)),
        clip=settings.clip,
        loss=settings.loss,
        auxk_alpha=settings.auxk_alpha,
        auxk=settings.auxk or max(1, round(mean_width / 2)),
        outlier_factor=settings.outlier_factor or math.inf,
        dead_pairs=min(settings.dead_tokens, round(settings.dead_share * steps * settings.batch)),
        threshold_start=min(steps - 1, max(anneal, steps // 10)),
        log_every=max(1, steps // _LOG_LINES),
        seed=settings.seed,
        audit_steps=_audit_steps(settings.audits, audit_batches, steps) if n_exclusive else (),
        audit_batches=audit_batches,
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


def _audit_steps(audits: int, batches: int, steps: int) -> tuple[int, ...]:
    """As many audits as asked for, or as there is room for: each needs its own pairs, in two halves at least. One batch
    to spare: in very short runs the closing audit would be left with a single batch."""
    audits = min(audits, int((_AUDITS_TO - _AUDITS_FROM) * steps / (batches + 1)))
    if audits == 0:
        return ()
    shares = [_AUDITS_FROM + (_AUDITS_TO - _AUDITS_FROM) * audit / max(1, audits - 2) for audit in range(audits - 1)]
    return (*(round(steps * share) for share in shares), steps - 1)


def _exclusive(settings: TrainSettings, features: int) -> int:
    if settings.architecture != "dfc" or settings.exclusive == 0:
        return 0
    count = round(settings.exclusive * features)
    if count == 0 or 2 * count >= features:
        raise InputError(
            f"--exclusive {settings.exclusive} of {features} features leaves a partition empty: ask for more features, "
            "another share, or --architecture standard"
        )
    return count - count % _ALIGNED if features >= _LARGE and count >= _ALIGNED else count


def _designated(settings: TrainSettings, features: int, widths: tuple[int, int]) -> int:
    if _TIES[settings.architecture] == "none":
        return 0
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
