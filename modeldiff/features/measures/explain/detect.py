"""The offline detector: how well a description from the texts tells where its feature is active, on held-out texts.

A text's score is the sum of ln(lift) over the characteristic words it holds (those on which the feature fires and those
before it; the higher lift where a word is both), each counted once: naive Bayes over what the description names. The
feature counts as active where the score exceeds a threshold, chosen on the describing half for the best mean of the
shares of active and of inactive excerpts told right. Not comparable to the accuracy of a judge that reads an
explanation (paper section 7).

Legend: V different words, E excerpts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modeldiff.features.measures.explain.describe import Description
from modeldiff.features.measures.explain.excerpts import Excerpts


@dataclass(frozen=True)
class Detector:
    """What a description says about texts."""

    score_E: NDArray[np.float64]
    threshold: float

    def accuracy(self, active: NDArray[np.int64], inactive: NDArray[np.int64]) -> float:
        """Share of these excerpts told right."""
        right = (self.score_E[active] > self.threshold).sum() + (self.score_E[inactive] <= self.threshold).sum()
        return float(right / (len(active) + len(inactive)))


def detector_of(description: Description, excerpts: Excerpts, activation_E: NDArray[np.float32]) -> Detector | str:
    """The detector of a described feature, or why there is none."""
    if description.missing:
        return description.missing
    named = [*description.words, *description.context]
    if not named:
        return "no word is characteristic beyond chance"
    number = {word: i for i, word in enumerate(excerpts.sample.words)}
    weight_V = np.zeros(len(number))
    for one in named:
        weight_V[number[one.name]] = max(weight_V[number[one.name]], np.log(one.lift))
    score_E = excerpts.scores(weight_V)
    first_E = ~excerpts.second_E & excerpts.known_E
    active_E = activation_E[first_E] > 0
    if active_E.all():
        return "it is active in every text"
    return Detector(score_E, best_threshold(score_E[first_E], active_E))


def best_threshold(score_E: NDArray[np.float64], active_E: NDArray[np.bool_]) -> float:
    """Between which two scores active and inactive ones are told apart best; the lowest such place on a tie."""
    levels, level_E = np.unique(score_E, return_inverse=True)
    below = {
        label: np.cumsum(np.bincount(level_E[active_E == label], minlength=len(levels))) / (active_E == label).sum()
        for label in (True, False)
    }
    # After level i: share of the inactive ones at or below it, and of the active ones above it.
    balanced = (below[False] + 1 - below[True]) / 2
    best = int(np.argmax(balanced))
    return float(levels[best] if best + 1 == len(levels) else (levels[best] + levels[best + 1]) / 2)
