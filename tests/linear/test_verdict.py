"""Verdicts on known ratios, and the scale they are held against."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from modeldiff.linear.verdict import Scale, calls_of, evidence_score, scale_of, verdicts

NAN = float("nan")
# Shared features read from one model: median ratio 0.8, one in twenty below 0.6.
SCALE = Scale(references=100, ratio_median=0.8, ratio_low=0.6, null=0.01)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (0.5, 0.0, "exclusive"),
        (0.5, 0.19, "exclusive"),
        (0.5, 0.21, "undecided"),
        (0.5, 0.29, "undecided"),
        (0.5, 0.31, "predictable"),
        (0.5, 0.9, "predictable"),
        # Little is explained at all: what chance reaches says nothing against exclusiveness.
        (0.02, 0.009, "exclusive"),
        (0.0101, -0.1, "exclusive"),
        (0.009, -0.1, "unknown"),
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
    assert scale.ratio_low == pytest.approx(0.5205)
    assert scale.null == pytest.approx(0.095)


def test_bounds_of_the_scale() -> None:
    few = scale_of(np.full(3, 0.5), np.full(3, 0.1), np.array([-1.0]))
    assert (few.references, few.bar, few.predictable_from) == (3, 0.5, 1.0)
    assert few.false_exclusive == 1, "the bar is not theirs, and it is said what it would call them"
    none = scale_of(np.full(3, NAN), np.full(3, NAN), np.array([NAN]))
    assert (none.references, none.false_exclusive) == (0, None)


def made_scale(ratio_R: np.ndarray, own: float = 0.5) -> Scale:
    """Of references with these ratios; permuted pairs reach 0.01."""
    return scale_of(np.full(len(ratio_R), own), own * ratio_R, np.full(20, 0.01))


# Ratios of shared features: nearly alike; scattered, a tenth of them far below half of the median; few of them. The
# lowest of ten are called exclusive: 5 % cannot be told from so few.
TIGHT = np.linspace(0.7, 0.9, 200)
WIDE = np.concatenate([np.linspace(0.1, 0.3, 20), np.linspace(0.7, 0.9, 180)])
FEW = np.linspace(0.2, 0.9, 10)


@pytest.mark.parametrize(
    ("ratio_R", "bar", "predictable_from", "false_exclusive"),
    [(TIGHT, 0.4, 0.7095, 0), (WIDE, 0.1953, 0.3945, 0.05), (FEW, 0.2, 0.275, 0.1)],
    ids=["tight", "wide", "few"],
)
def test_there_is_always_a_middle(
    ratio_R: np.ndarray, bar: float, predictable_from: float, false_exclusive: float
) -> None:
    scale = made_scale(ratio_R)
    assert scale.bar == pytest.approx(bar, abs=1e-3)
    assert scale.predictable_from == pytest.approx(predictable_from, abs=1e-3)
    assert scale.false_exclusive == false_exclusive
    ratio = np.array([scale.bar - 0.01, (scale.bar + scale.predictable_from) / 2, scale.predictable_from + 0.01])
    assert verdicts(np.full(3, 0.5), 0.5 * ratio, scale).tolist() == ["exclusive", "undecided", "predictable"]


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6])
def test_of_new_shared_features_about_5_percent_are_called_exclusive_at_most(spread: float) -> None:
    generator = np.random.default_rng(0)

    def ratio(count: int) -> np.ndarray:
        return 0.8 * np.exp(-spread * np.abs(generator.standard_normal(count)) * 3)

    called = [
        (verdicts(np.full(200, 0.5), 0.5 * ratio(200), made_scale(ratio(256))) == "exclusive").mean() for _ in range(50)
    ]
    assert np.mean(called) < 0.055


def test_calls_beside_what_chance_gives() -> None:
    scale = Scale(references=240, ratio_median=0.8, ratio_low=0.4, null=0, called_exclusive=20, called_predictable=200)
    many = calls_of(np.array(["exclusive"] * 15 + ["undecided"] * 20 + ["predictable"] * 25 + ["unknown"] * 4), scale)
    assert (many.exclusive, many.judged, many.unknown) == (15, 60, 4)
    assert many.by_chance == pytest.approx(5)
    assert many.beyond_chance
    exact = fisher_exact([[15, 45], [20, 220]], alternative="greater").pvalue
    assert many.p == pytest.approx(exact, rel=1e-9), "15 of 60 against 20 of 240"
    few = calls_of(np.array(["exclusive"] * 7 + ["predictable"] * 53), scale)
    assert few.by_chance == pytest.approx(5)
    assert not few.beyond_chance
    assert few.p == pytest.approx(0.27, abs=0.05)

    without = calls_of(np.array(["exclusive"] * 3), Scale(0, 1.0, 1.0, 0.0))
    assert (without.exclusive, without.by_chance, without.p, without.beyond_chance) == (3, None, None, False)
    # None of eight references is called so: that alone does not make one of five more than chance.
    assert not calls_of(np.array(["exclusive"] + ["predictable"] * 4), Scale(8, 0.9, 0.8, 0.0, 0, 8)).beyond_chance


def test_the_score_falls_with_what_the_other_model_explains() -> None:
    own = np.full(5, 0.6)
    other = np.array([-0.5, 0.0, 0.2, 0.6, 0.9])
    score = evidence_score(own, other)
    assert score[:3] == pytest.approx([0.6, 0.6, 0.4 * 2 / 3])
    assert score[3:] == pytest.approx([0, -0.3])
    assert np.isnan(evidence_score(np.array([NAN]), np.array([0.1]))).all()
