"""Whether the evidence says that a feature of one model is exclusive: three answers, calibrated on the pair itself.

What decides is one ratio: R² of the feature's activation from the *other* model's activations / R² from its own (a
sparse feature is never fully linear in either), 0 where the other model is within chance. Two scales come from the same
activations: permuted pairs show what chance explains, and shared features, read from one model alone, show what a
concept that both models have looks like. Nothing here says that the other model lacks a concept: only that no linear
analogue was found.

Two bars follow from the shared features: half of their median ratio, the middle between a concept of both models and
one of neither; and the ratio that only 5 % of them fall below. Exclusive is what is below both, predictable what is
above both, undecided what lies between. So `exclusive` is wrong about at most some 5 % of shared features, however
widely their ratios scatter. (If the other model is within chance for more than 5 % of them, no bar is low enough.)
Which share of them is called exclusive in fact stands beside every count (`Calls`).

Legend: F features, R reference features.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["exclusive", "undecided", "predictable", "unknown"]
_BAR = 0.5
"""As in training (crosscoder/audits): the middle between a concept of both models and none."""
_LOW_QUANTILE, _NULL_QUANTILE = 0.05, 0.95
LEGIBLE = 0.01
"""An R² from the own model below this says that a feature cannot be read from it: its ratio means nothing."""
MOSTLY_DIFFER = 0.5
"""Where the two models' tokens differ at a larger share of a feature's examples, the tokenizers alone may explain that
only one model has it."""
_LEAST_REFERENCES = 8
_CHANCE = 0.05
"""So many exclusive calls as there are, or more, would come by chance with at most this probability."""


@dataclass(frozen=True)
class Scale:
    """What the ratios of one model's features are held against.

    Attributes:
        references: shared features that can be read from this model alone.
        ratio_median, ratio_low: the median of their ratios, and the ratio that one more shared feature would fall below
            with a probability of 5 % (the smallest where there are fewer than 19); 1 where there are too few.
        null: R² from the other model that one feature in twenty reaches in permuted pairs; at least 0.
        called_exclusive, called_predictable: references that are called so by this very scale.
    """

    references: int
    ratio_median: float
    ratio_low: float
    null: float
    called_exclusive: int = 0
    called_predictable: int = 0

    @property
    def bar(self) -> float:
        """Largest ratio of a feature that is called exclusive."""
        return min(_BAR * self.ratio_median, self.ratio_low)

    @property
    def predictable_from(self) -> float:
        """Smallest ratio of a feature that is called predictable."""
        return max(_BAR * self.ratio_median, self.ratio_low)

    @property
    def legible_from(self) -> float:
        """R² from the own model up to which nothing can be said of a feature."""
        return max(LEGIBLE, self.null)

    @property
    def false_exclusive(self) -> float | None:
        """Share of the references that is called exclusive, falsely; None without references."""
        return self.called_exclusive / self.references if self.references else None


def scale_of(own_R: NDArray[Any], other_R: NDArray[Any], null_F: NDArray[Any]) -> Scale:
    """The scale of one side, from R² of the reference features from this model and from the other one, and R² of
    features from the other model in permuted pairs; NaN: it fires too rarely."""
    known_F = null_F[~np.isnan(null_F)].astype(np.float64)
    null = max(0.0, float(np.quantile(known_F, _NULL_QUANTILE))) if len(known_F) else 0.0
    scale = Scale(0, 1.0, 1.0, null)
    ratio_R = _beyond_chance(own_R, other_R, scale)
    ratio_R = ratio_R[~np.isnan(ratio_R)]
    if len(ratio_R) >= _LEAST_REFERENCES:
        # "weibull": so many of n references are below it that one more falls there with a probability of 5 %.
        bars = np.clip([np.median(ratio_R), np.quantile(ratio_R, _LOW_QUANTILE, method="weibull")], 0, 1)
        scale = Scale(0, float(bars[0]), float(bars[1]), null)
    called_R = verdicts(own_R, other_R, scale)
    return dataclasses.replace(
        scale,
        references=len(ratio_R),
        called_exclusive=int((called_R == "exclusive").sum()),
        called_predictable=int((called_R == "predictable").sum()),
    )


def _beyond_chance(own_F: NDArray[Any], other_F: NDArray[Any], scale: Scale) -> NDArray[np.float64]:
    """(F,) what the rule is about: R² from the other model / R² from the own one, 0 where the other model explains no
    more than chance. NaN: it fires too rarely for an R², or its own model does not explain it beyond chance either."""
    own, other = own_F.astype(np.float64), other_F.astype(np.float64)
    ratio = np.full(len(own), np.nan)
    known = (own > scale.legible_from) & ~np.isnan(other)
    ratio[known] = np.where(other[known] <= scale.null, 0, other[known] / own[known])
    return ratio


def verdicts(own_F: NDArray[Any], other_F: NDArray[Any], scale: Scale) -> NDArray[np.str_]:
    """(F,) a Verdict for each feature of one model; unknown where `_beyond_chance` is NaN."""
    ratio = _beyond_chance(own_F, other_F, scale)
    called = (np.isnan(ratio), ratio <= scale.bar, ratio >= scale.predictable_from)
    return np.select(called, ("unknown", "exclusive", "predictable"), "undecided").astype("<U11")


@dataclass(frozen=True)
class Calls:
    """How many exclusive features of one model are called what, and how many are called exclusive by chance.

    Attributes:
        exclusive, undecided, predictable, unknown: features that ever fire, by verdict.
        references, false_exclusive: as in `Scale`.
        by_chance: features that would be called exclusive if all were shared ones; None without references.
        p: probability of so many exclusive calls or more if they were (Fisher's exact test, one-sided, as the share is
            counted on a sample); None where nothing can be said or there are no references.
    """

    exclusive: int
    undecided: int
    predictable: int
    unknown: int
    references: int
    false_exclusive: float | None
    by_chance: float | None
    p: float | None

    @property
    def judged(self) -> int:
        """Features of which something can be said."""
        return self.exclusive + self.undecided + self.predictable

    @property
    def beyond_chance(self) -> bool:
        """Whether more are called exclusive than chance gives."""
        return self.p is not None and self.p <= _CHANCE


def calls_of(verdict_F: NDArray[np.str_], scale: Scale) -> Calls:
    """Of the features of one model with these verdicts."""
    counts = {name: int((verdict_F == name).sum()) for name in get_args(Verdict)}
    judged = len(verdict_F) - counts["unknown"]
    by_chance = p = None
    if scale.false_exclusive is not None:
        by_chance = scale.false_exclusive * judged
        called = counts["exclusive"] + scale.called_exclusive
        if judged:
            p = _chance_of(counts["exclusive"], called, judged, judged + scale.references)
    return Calls(**counts, references=scale.references, false_exclusive=scale.false_exclusive, by_chance=by_chance, p=p)


def _chance_of(least: int, marked: int, drawn: int, of: int) -> float:
    """Probability of `least` or more marked ones among `drawn` out of `of`, of which so many are `marked`. To import
    scipy.stats for it would take longer than a whole listing."""

    def ways(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    counts = range(max(least, drawn + marked - of), min(marked, drawn) + 1)
    logs = (ways(marked, k) + ways(of - marked, drawn - k) - ways(of, drawn) for k in counts)
    return min(1.0, math.fsum(map(math.exp, logs)))


def evidence_score(own_F: NDArray[Any], other_F: NDArray[Any]) -> NDArray[np.float64]:
    """(F,) what lists are sorted by: (own - other) x (1 - other / own); NaN where an R² is missing.

    The gap alone favours features that fire all the time, of which either model explains much; the ratio alone those of
    which neither does.
    """
    own, other = own_F.astype(np.float64), np.maximum(other_F.astype(np.float64), 0)
    gap = own - other
    positive = own > 1e-6
    share = np.clip(gap / np.where(positive, own, 1), 0, None)
    # Where the other model explains more, the gap alone: the more negative, the further down.
    return np.where(positive & (gap > 0), gap * share, gap)


@dataclass(frozen=True)
class Baseline:
    """What differences of two activations of one model show, read as if each were a feature of it alone.

    An exclusive feature with the same figures says no more than that the two models' activations differ.
    """

    directions: int
    """That were measured; the others fire too rarely."""
    own: float | None
    """Medians of R² from this model, from the other one, and from that in permuted pairs; None: none was measured."""
    other: float | None
    null: float | None
    ratio_low: float | None
    """5 %, 50 % and 95 % of the ratios other / own, over those that can be read from this model; None: none can."""
    ratio_median: float | None
    ratio_high: float | None
    verdicts: dict[str, int]
    """How many of them would be called what."""


def baseline_of(own_R: NDArray[Any], other_R: NDArray[Any], null_R: NDArray[Any], *, scale: Scale) -> Baseline:
    """From R² from this model, from the other one, and from that in permuted pairs; NaN: it fires too rarely."""
    values_3R = np.stack([own_R, other_R, null_R]).astype(np.float64)
    own, other, null = values_3R[:, ~np.isnan(values_3R).any(axis=0)]
    called = np.unique(verdicts(own, other, scale), return_counts=True)
    legible = own > LEGIBLE
    ratio = other[legible] / own[legible]

    def quantile(values: NDArray[np.float64], share: float = 0.5) -> float | None:
        return float(np.quantile(values, share)) if len(values) else None

    return Baseline(
        directions=len(own),
        own=quantile(own),
        other=quantile(other),
        null=quantile(null),
        ratio_low=quantile(ratio, 0.05),
        ratio_median=quantile(ratio),
        ratio_high=quantile(ratio, 0.95),
        verdicts={str(name): int(count) for name, count in zip(*called, strict=True)},
    )
