"""Lift: how much more of a feature's activation falls on a word, a context or a source than of all pairs does.

    lift = share of the activation / share of the pairs = (m / n) / (M / N)

with m the activation on the n pairs that have the word, M that on all N pairs. Smoothed: as if the word had been seen
`PRIOR` times more, with the average activation of a pair each time,

    lift = ((m + PRIOR M / N) / (n + PRIOR)) / (M / N).

Null: the same with the activations moved along the texts by a random number of pairs, `SHIFTS` times. Moved as a
whole, runs of firing stay runs, and words keep to their texts; only what belongs together is taken apart.

Ranked by what it tells, in nats: the Kullback-Leibler divergence between "the activation is at the word" and "a pair is
at the word". That is large for what is both frequent with the feature and rare without it.

Legend: N pairs, C firings of a feature, K categories (words, sources), J categories of one pair at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIOR = 5.0
MIN_COUNT = 5
"""A word on fewer pairs is not looked at."""
MIN_FIRINGS = 3
"""Nor one on which the feature fires less often."""
SHIFTS = 100


@dataclass(frozen=True)
class Lift:
    """A word, or a source, that is characteristic of a feature."""

    name: str
    lift: float
    """Smoothed."""
    chance: float
    """The highest that this very word reached in the shifts."""
    share: float
    """Of the feature's activation."""
    base: float
    """Share of the pairs."""
    firings: int
    """Pairs that have it and on which the feature fires."""
    nats: float
    """How much it tells."""


@dataclass(frozen=True)
class Places:
    """What each of N pairs has: its word, the words before it, or its source.

    Args:
        category_NJ: numbers of the categories, different ones within a row; -1 fills up.
        names: of the K categories.
    """

    category_NJ: NDArray[np.int32]
    names: Sequence[str]

    def counts(self) -> NDArray[np.int64]:
        """(K,): on how many pairs each is."""
        return np.bincount(self.category_NJ[self.category_NJ >= 0], minlength=len(self.names))


@dataclass(frozen=True)
class _Measured:
    """Of one feature, (K,) each."""

    mass_K: NDArray[np.float64]
    firings_K: NDArray[np.int64]
    lift_K: NDArray[np.float64]
    told_K: NDArray[np.float64]


def before(word_N: NDArray[np.int32], window_N: NDArray[np.int32], reach: int) -> NDArray[np.int32]:
    """(N, reach): the different words among the `reach` pairs before each, within its text."""
    n = len(word_N)
    found_NJ = np.full((n, reach), -1, np.int32)
    for back in range(1, min(reach, n - 1) + 1):
        same = window_N[back:] == window_N[:-back]
        found_NJ[back:, back - 1] = np.where(same, word_N[:-back], -1)
    found_NJ.sort(axis=1)
    again = found_NJ[:, 1:] == found_NJ[:, :-1]
    found_NJ[:, 1:][again] = -1
    return found_NJ


def shifts(n: int, seed: int) -> list[int]:
    """How far the activations are moved: between a quarter and three quarters of the pairs."""
    return np.random.default_rng(seed).integers(n // 4, max(n // 4 + 1, 3 * n // 4), SHIFTS).tolist()


def characteristic(
    places: Places,
    counts_K: NDArray[np.int64],
    row_C: NDArray[np.int64],
    value_C: NDArray[np.float32],
    shifted: Sequence[int],
    top: int,
) -> list[Lift]:
    """What is characteristic of a feature, most telling first.

    Kept is what has a lift above its own chance, and tells more than anything told in any of the shifts.

    Args:
        counts_K: of `places`, the same for every feature.
        row_C, value_C: where the feature fires, and how strongly.
        shifted: from `shifts`.
    """
    n, total = len(places.category_NJ), float(value_C.sum())
    if not total:
        return []
    average = total / n
    looked_at_K = counts_K >= MIN_COUNT
    chance_K = np.zeros(len(counts_K))
    most_told = 0.0

    def measured(row: NDArray[np.int64]) -> _Measured:
        found_CJ = places.category_NJ[row]
        inside = found_CJ >= 0
        found = found_CJ[inside]
        weights = np.broadcast_to(value_C[:, None], found_CJ.shape)[inside]
        mass_K = np.bincount(found, weights, minlength=len(counts_K)).astype(np.float64)
        firings_K = np.bincount(found, minlength=len(counts_K))
        lift_K = (mass_K + PRIOR * average) / (counts_K + PRIOR) / average
        told_K = np.where(looked_at_K & (firings_K >= MIN_FIRINGS), _told(lift_K, counts_K / n), 0)
        return _Measured(mass_K, firings_K, lift_K, told_K)

    for shift in shifted:
        moved = measured((row_C + shift) % n)
        np.maximum(chance_K, moved.lift_K, out=chance_K)
        most_told = max(most_told, float(moved.told_K.max(initial=0)))
    own = measured(row_C)
    kept = np.flatnonzero((own.told_K > most_told) & (own.lift_K > chance_K))
    order = kept[np.lexsort((kept, -own.told_K[kept]))][:top]
    return [
        Lift(
            name=places.names[k],
            lift=float(own.lift_K[k]),
            chance=float(chance_K[k]),
            share=float(own.mass_K[k] / total),
            base=float(counts_K[k] / n),
            firings=int(own.firings_K[k]),
            nats=float(own.told_K[k]),
        )
        for k in order.tolist()
    ]


def _told(lift_K: NDArray[np.float64], base_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats, 0 where the lift is at most 1: what a feature avoids describes it badly."""
    share_K = np.clip(lift_K * base_K, 0, 1)
    with_it = np.where(share_K > 0, share_K * np.log(lift_K), 0)
    ratio = np.divide(1 - share_K, 1 - base_K, out=np.ones_like(share_K), where=(share_K < 1) & (base_K < 1))
    return np.where(lift_K > 1, with_it + (1 - share_K) * np.log(ratio), 0)
