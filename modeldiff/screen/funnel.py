"""The funnel: from all features of one model to a ranked few, a step for each kind of evidence.

Every step asks one question and leaves out what fails it; what cannot be answered is left out and counted apart. Plain
arrays in, so that it can be tested on made evidence.

Legend: F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """What is known about the features, from the side of one model. NaN: not measured."""

    candidate_F: Mask
    """The features that are screened."""
    firings_F: NDArray[np.int64]
    """Pairs, of those whose impact was measured, on which it fires."""
    density_F: Floats
    """Share of all pairs on which it fires."""
    own_F: Floats
    """Held-out R² of a linear map of this model's activations; NaN where that is no more than chance, too."""
    other_F: Floats
    """The same from the other model's."""
    reference: float
    """Median other / own of shared features read from this model alone."""
    twin_F: Floats
    """Highest correlation with an exclusive feature of the other model; 0 without one."""
    per_firing_F: Floats
    """Nats by which this model's predictions change for each firing when the feature is removed."""
    asymmetry_F: Floats
    """(own - other) / (own + other) of what removing it changes."""
    surface_F: Floats
    """Held-out R² from the last two words."""


@dataclass(frozen=True)
class Limits:
    """How strict the steps are (see ScreenSettings)."""

    least_firings: int
    most_density: float
    most_predictable: float
    twin: float
    least_asymmetry: float
    most_surface: float


@dataclass(frozen=True)
class Step:
    """What one question left."""

    name: str
    left: int
    """Features that passed this step and all before it."""
    unknown: int
    """Of those that failed it: not enough was measured to answer."""


@dataclass(frozen=True)
class Funnel:
    """The outcome for one model."""

    steps: list[Step]
    ranked: list[int]
    """Features that passed all steps, the highest rank score first."""
    score_F: Floats
    """`rank_score` of every feature."""


def run_funnel(evidence: Evidence, limits: Limits) -> Funnel:
    """Ask the questions in order and rank what is left."""
    ratio_F = share_of_reference(evidence)
    questions: list[tuple[str, Mask, Mask]] = [
        ("fires often enough", evidence.firings_F >= limits.least_firings, np.zeros(len(ratio_F), bool)),
        ("does not fire all along", evidence.density_F <= limits.most_density, np.zeros(len(ratio_F), bool)),
        ("hardly predictable from the other model", ratio_F < limits.most_predictable, np.isnan(ratio_F)),
        ("no twin among the other's exclusive", evidence.twin_F < limits.twin, np.isnan(evidence.twin_F)),
        (
            "matters to this model, not the other",
            evidence.asymmetry_F >= limits.least_asymmetry,
            np.isnan(evidence.asymmetry_F),
        ),
        ("not on the surface of the text", evidence.surface_F < limits.most_surface, np.isnan(evidence.surface_F)),
    ]
    left_F = evidence.candidate_F.copy()
    steps = [Step("features the model has", int(left_F.sum()), 0)]
    for name, passes_F, unknown_F in questions:
        unknown = int((left_F & unknown_F).sum())
        left_F &= passes_F & ~unknown_F
        steps.append(Step(name, int(left_F.sum()), unknown))
    score_F = rank_score(evidence)
    left = np.flatnonzero(left_F)
    ranked = left[np.lexsort((left, -np.nan_to_num(score_F[left], nan=-np.inf)))]
    return Funnel(steps, ranked.tolist(), score_F)


def share_of_reference(evidence: Evidence) -> Floats:
    """(F,) R² other / own, as a share of what shared features show: 0 nothing, 1 as much as of a concept of both.

    NaN where an R² is missing or the model's own activations explain nothing.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_F = np.maximum(evidence.other_F, 0) / evidence.own_F / max(evidence.reference, 1e-6)
    return np.where(evidence.own_F > 0, ratio_F, np.nan)


def rank_score(evidence: Evidence) -> Floats:
    """(F,) what the list is sorted by: a product of shares, each 1 at best, and of nats.

    nats per firing x asymmetry x (1 - share of the reference) x (1 - surface): what the model does because of the
    feature, times how much less the other one does, times how much less is to be read from its activations, times
    what is not to be seen in the last two words.
    """
    unpredicted_F = 1 - share_of_reference(evidence)
    return (
        evidence.per_firing_F
        * evidence.asymmetry_F.clip(0, 1)
        * unpredicted_F.clip(0, 1)
        * (1 - evidence.surface_F).clip(0, 1)
    )


def fold(ranked: list[int], twins: Mapping[int, Mapping[int, float]], threshold: float, top: int) -> dict[int, int]:
    """Which features of a ranked list are the doubles of one above them: {feature: the one above}.

    Stops when `top` that are nobody's double were found.

    Args:
        twins: by feature, correlations with others; one direction is enough.
    """
    heads: list[int] = []
    folded: dict[int, int] = {}
    for feature in ranked:
        above = [
            head
            for head in heads
            if max(twins.get(feature, {}).get(head, 0.0), twins.get(head, {}).get(feature, 0.0)) >= threshold
        ]
        if above:
            folded[feature] = above[0]
        elif len(heads) == top:
            break
        else:
            heads.append(feature)
    return folded
