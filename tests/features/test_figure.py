"""The picture of the evidence: which groups it shows, and that the same evidence gives the same bytes."""

from __future__ import annotations

import numpy as np

from modeldiff.features.evidence import Evidence, Readings
from modeldiff.features.figure import groups, predictability_figure
from tests.features.made_crosscoder import N_A, N_B, N_SHARED, made_crosscoder


def made_evidence(references: int = 20) -> Evidence:
    generator = np.random.default_rng(0)

    def values(count: int, low: float, high: float) -> np.ndarray:
        return generator.uniform(low, high, count).astype(np.float32)

    n = N_A + N_SHARED + N_B
    readings = {
        s: Readings(values(references, 0.4, 1), values(references, 0, 0.4), values(references, -0.01, 0)) for s in "ab"
    }
    return Evidence(
        r2={s: values(n, 0.1, 1) for s in "ab"},
        null={s: values(n, -0.01, 0) for s in "ab"},
        alone=readings,
        difference=readings,
    )


def test_each_side_shows_its_own_features_against_the_other_model() -> None:
    evidence = made_evidence()
    evidence.r2["a"][0] = np.nan
    a, b = (groups(evidence, made_crosscoder(), side) for side in "ab")
    np.testing.assert_array_equal(a[-1].own, evidence.r2["a"][:N_A])
    np.testing.assert_array_equal(a[-1].other, evidence.r2["b"][:N_A])
    np.testing.assert_array_equal(b[-1].own, evidence.r2["b"][-N_B:])
    np.testing.assert_array_equal(b[0].other, evidence.null["a"][-N_B:])
    assert [one.count for one in a] == [N_A - 1, 20, 20, N_A - 1], "what fires too rarely is not counted"


def test_the_same_evidence_gives_the_same_picture() -> None:
    first, second = (predictability_figure(made_evidence(), made_crosscoder(), "made") for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")


def test_groups_without_anyone_are_no_error() -> None:
    assert predictability_figure(made_evidence(references=0), made_crosscoder(), "made").startswith(b"\x89PNG")
