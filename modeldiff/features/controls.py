"""What the evidence says about directions that nobody chose: the control beside every list.

An exclusive feature whose figures are those of a random direction says no more than that the two models' activations
differ, which a linear map from one to the other shows as well.

Legend: R random directions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.linear.verdict import Scale, ratios, verdicts

_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Control:
    """Random directions of one model, read as if each were a feature of it alone.

    Attributes:
        directions: that were measured; the others fire too rarely.
        own, other, null: medians of R² from this model, from the other one, and from that in permuted pairs; None when
            none was measured.
        ratio_low, ratio_median, ratio_high: 5 %, 50 % and 95 % of their ratios, R² from the other model / R² from this
            one, over those that can be read from this model; None when none can.
        verdicts: how many of them would be called what.
    """

    directions: int
    own: float | None
    other: float | None
    null: float | None
    ratio_low: float | None
    ratio_median: float | None
    ratio_high: float | None
    verdicts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return dataclasses.asdict(self)


def control_of(own_R: NDArray[Any], other_R: NDArray[Any], null_R: NDArray[Any], scale: Scale) -> Control:
    """Of one side's random directions, with that side's scale; NaN: fires too rarely."""
    known_R = ~(np.isnan(own_R) | np.isnan(other_R) | np.isnan(null_R))
    own, other, null = (r2_R[known_R].astype(np.float64) for r2_R in (own_R, other_R, null_R))
    ratio = ratios(own, other)
    called = verdicts(own, other, scale)
    low, median, high = (float(np.quantile(ratio, q)) if len(ratio) else None for q in (_LOW, 0.5, _HIGH))
    return Control(
        directions=len(own),
        own=_median(own),
        other=_median(other),
        null=_median(null),
        ratio_low=low,
        ratio_median=median,
        ratio_high=high,
        verdicts={name: int(count) for name, count in zip(*np.unique(called, return_counts=True), strict=True)},
    )


def _median(values: NDArray[np.float64]) -> float | None:
    return float(np.median(values)) if len(values) else None
