"""Whether the evidence says that a feature of one model is exclusive: three answers, calibrated on the pair itself.

What decides is how much of a feature's activation the *other* model's activations explain, relative to what its own
explain (a sparse feature is never fully linear in either). Two scales come from the same activations: permuted pairs
show what chance explains, and shared features, read from one model alone, show what a concept that both models have
looks like. Nothing here says that the other model lacks a concept: only that no linear analogue was found.

Legend: F features, R reference features.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["exclusive", "undecided", "predictable", "unknown"]
_BAR = 0.5
"""As in training (crosscoder/audit.py): the middle between a concept of both models and none."""
_LOW_QUANTILE, _NULL_QUANTILE = 0.05, 0.95
LEGIBLE = 0.01
"""An R² from the own model below this says that a feature cannot be read from it: its ratio means nothing."""
_LEAST_REFERENCES = 8


@dataclass(frozen=True)
class Scale:
    """What the ratios of one model's features are held against.

    Attributes:
        references: shared features that were read from this model alone.
        ratio_median: of their ratios, R² from the other model / R² from this one; 1 when there are too few.
        ratio_low: 5 % of them have a smaller one; never below half the median.
        null: R² from the other model that one feature in twenty reaches in permuted pairs; at least 0.
    """

    references: int
    ratio_median: float
    ratio_low: float
    null: float

    @property
    def bar(self) -> float:
        """Largest ratio of a feature that is called exclusive: half of the references' median."""
        return _BAR * self.ratio_median

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return dataclasses.asdict(self)


def scale_of(own_R: NDArray[Any], other_R: NDArray[Any], null_F: NDArray[Any]) -> Scale:
    """The scale of one side.

    Args:
        own_R, other_R: R² of the reference features from this model and from the other one; NaN: fires too rarely.
        null_F: R² of features from the other model in permuted pairs; NaN likewise.
    """
    ratio_R = ratios(own_R, other_R)
    known_F = null_F[~np.isnan(null_F)].astype(np.float64)
    null = max(0.0, float(np.quantile(known_F, _NULL_QUANTILE))) if len(known_F) else 0.0
    if len(ratio_R) < _LEAST_REFERENCES:
        return Scale(len(ratio_R), 1.0, 1.0, null)
    median = float(np.clip(np.median(ratio_R), 0, 1))
    low = float(np.clip(np.quantile(ratio_R, _LOW_QUANTILE), _BAR * median, 1))
    return Scale(len(ratio_R), median, low, null)


def ratios(own_F: NDArray[Any], other_F: NDArray[Any]) -> NDArray[np.float64]:
    """R² from the other model / R² from the own one, of the features that can be read from the own one at all."""
    legible_F = own_F > LEGIBLE  # False where NaN
    return other_F[legible_F].astype(np.float64) / own_F[legible_F]


def verdicts(own_F: NDArray[Any], other_F: NDArray[Any], scale: Scale) -> NDArray[np.str_]:
    """(F,) a Verdict for each feature of one model.

    unknown: it fires too rarely for an R², or its own model does not explain it beyond chance either. exclusive: the
    other model explains no more of it than chance, or less than half of what it explains of shared features.
    predictable: as much as of all but the least predictable 5 % of the shared features. undecided: in between.
    """
    own, other = own_F.astype(np.float64), other_F.astype(np.float64)
    result = np.full(len(own), "undecided", dtype="<U11")
    with np.errstate(invalid="ignore"):
        result[other >= np.maximum(scale.ratio_low * own, scale.null)] = "predictable"
        result[other <= np.maximum(scale.bar * own, scale.null)] = "exclusive"
        result[np.isnan(own) | np.isnan(other) | ~(own > scale.null)] = "unknown"
    return result


def evidence_score(own_F: NDArray[Any], other_F: NDArray[Any]) -> NDArray[np.float64]:
    """(F,) what lists are sorted by: (own - other) x (1 - other / own), 0 where the own model explains nothing.

    The gap alone favours features that fire all the time, of which either model explains much; the ratio alone those of
    which neither does. NaN where an R² is missing.
    """
    own, other = own_F.astype(np.float64), np.maximum(other_F.astype(np.float64), 0)
    gap = own - other
    positive = own > 1e-6
    share = np.clip(gap / np.where(positive, own, 1), 0, None)
    # Where the other model explains more, the gap alone: the more negative, the further down.
    return np.where(positive & (gap > 0), gap * share, gap)
