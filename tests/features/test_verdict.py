"""Verdicts on known ratios, and the scale they are held against."""

from __future__ import annotations

import numpy as np
import pytest

from modeldiff.features.verdict import Scale, evidence_score, scale_of, verdicts

NAN = float("nan")
# Shared features read from one model: median ratio 0.8, one in twenty below 0.6.
SCALE = Scale(references=100, ratio_median=0.8, ratio_low=0.6, null=0.01)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (0.5, 0.0, "exclusive"),
        (0.5, -3.0, "exclusive"),
        (0.5, 0.19, "exclusive"),
        (0.5, 0.21, "undecided"),
        (0.5, 0.29, "undecided"),
        (0.5, 0.31, "predictable"),
        (0.5, 0.9, "predictable"),
        # Little is explained at all: what chance reaches says nothing against exclusiveness.
        (0.02, 0.009, "exclusive"),
        (0.009, -0.1, "unknown"),
        (-0.2, -0.3, "unknown"),
        (NAN, 0.1, "unknown"),
        (0.5, NAN, "unknown"),
    ],
)
def test_verdicts(own: float, other: float, expected: str) -> None:
    assert verdicts(np.array([own]), np.array([other]), SCALE).tolist() == [expected]


def test_the_scale_is_measured() -> None:
    own_R = np.full(101, 0.5)
    other_R = own_R * np.linspace(0.5, 1.0, 101)
    null_F = np.concatenate([np.linspace(0, 0.1, 101), [NAN]])
    scale = scale_of(np.append(own_R, [0.001, NAN]), np.append(other_R, [0.5, 0.5]), null_F)
    assert scale.references == 101, "what cannot be read from its own model is no reference"
    assert scale.ratio_median == pytest.approx(0.75)
    assert scale.bar == pytest.approx(0.375)
    assert scale.ratio_low == pytest.approx(0.525)
    assert scale.null == pytest.approx(0.095)


def test_bounds_of_the_scale() -> None:
    few = scale_of(np.full(3, 0.5), np.full(3, 0.1), np.array([-1.0]))
    assert (few.references, few.ratio_median, few.ratio_low, few.null) == (3, 1.0, 1.0, 0.0)
    scattered = scale_of(np.full(20, 0.5), np.array([0.0] * 5 + [0.4] * 15), np.array([NAN]))
    assert scattered.ratio_low == scattered.bar == pytest.approx(0.4), "nothing is both predictable and exclusive"


def test_the_score_falls_with_what_the_other_model_explains() -> None:
    own = np.full(5, 0.6)
    other = np.array([-0.5, 0.0, 0.2, 0.6, 0.9])
    score = evidence_score(own, other)
    assert score[:3] == pytest.approx([0.6, 0.6, 0.4 * 2 / 3])
    assert score[3] == pytest.approx(0)
    assert score[4] == pytest.approx(-0.3)
    assert np.isnan(evidence_score(np.array([NAN]), np.array([0.1]))).all()
    dense, sparse = evidence_score(np.array([0.9, 0.5]), np.array([0.5, 0.1]))
    assert sparse > dense, "the same gap, a smaller share explained by the other model"
