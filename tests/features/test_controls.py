"""What is said about random directions, on known R²."""

from __future__ import annotations

import numpy as np
import pytest

from modeldiff.features.controls import control_of
from modeldiff.linear.verdict import Scale

NAN = float("nan")
# Exclusive up to a ratio of 0.4, predictable from 0.6 on.
SCALE = Scale(references=100, ratio_median=0.8, ratio_low=0.6, null=0.01)


def test_medians_quantiles_and_verdicts() -> None:
    own = np.full(101, 0.5)
    ratio = np.linspace(0, 1, 101)
    rare = [NAN]
    found = control_of(np.append(own, rare), np.append(own * ratio, rare), np.append(0 * own, rare), SCALE)
    assert found.directions == 101
    assert (found.own, found.other, found.null) == pytest.approx((0.5, 0.25, 0.0))
    assert (found.ratio_low, found.ratio_median, found.ratio_high) == pytest.approx((0.05, 0.5, 0.95))
    assert found.verdicts == {"exclusive": 41, "undecided": 19, "predictable": 41}
    assert set(found.to_json()) == set(vars(found))


def test_a_direction_that_cannot_be_read_from_its_own_model_has_no_ratio() -> None:
    found = control_of(np.array([0.5, 0.001]), np.array([0.25, 0.5]), np.zeros(2), SCALE)
    assert (found.directions, found.ratio_median) == (2, 0.5)
    assert found.verdicts == {"undecided": 1, "unknown": 1}


def test_nothing_measured() -> None:
    found = control_of(np.array([NAN]), np.array([NAN]), np.array([NAN]), SCALE)
    assert (found.directions, found.own, found.ratio_median, found.verdicts) == (0, None, None, {})
