"""A feature described from the texts alone: its words, the words before it, its sources; counted over all pairs of one
half of the documents, not only over top examples.

Lift: how much more of a feature's activation falls on a word (a word before, a source) than of all pairs does. With m
the activation on the n pairs that have the word and M that on all N pairs, as if the word had been seen `PRIOR` times
more with the average activation of a pair each time:

    lift = ((m + PRIOR M / N) / (n + PRIOR)) / (M / N)

Null: the same with the activations moved along the texts by a random number of pairs, `SHIFTS` times. Moved as a
whole, runs of firing stay runs, and words keep to their texts; only what belongs together is taken apart.

A word counts only where the feature fires on it in several documents: one that repeats an address makes a description
of nothing but itself. Chance is given the words of single documents too, which makes it no smaller.

Ranked by what it tells, in nats: the Kullback-Leibler divergence between "the activation is at the word" and "a pair is
at the word". That is large for what is both frequent with the feature and rare without it.

Legend: N pairs of the describing half, W windows, C firings of a feature, K categories (words, sources), J categories
of one pair at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from modeldiff.features.measures.explain.sample import Sample

PRIOR = 5.0
MIN_COUNT, MIN_WORD_FIRINGS, MIN_DOCUMENTS = 5, 3, 3
"""A word on fewer pairs, on which the feature fires less often, or in fewer documents, is not looked at."""
SHIFTS = 100
CONTEXT = 20
"""Pairs before a firing that count as its context."""
MIN_FIRINGS = 10
"""A feature that fires less often in the describing half is not described."""
MOST = 20
"""Words, contexts and sources kept of a feature, at most."""
_NAMED = 3


@dataclass(frozen=True)
class Lift:
    """A word, or a source, that is characteristic of a feature."""

    name: str
    lift: float
    """Smoothed."""
    chance: float
    """The highest that this very word reached in the shifts."""
    nats: float
    """How much it tells."""


@dataclass(frozen=True)
class Description:
    """What the texts say about a feature; lists are empty where nothing exceeds chance."""

    text: str
    """In one line, for people, the most telling first; or why there is none."""
    firings: int
    """Firings of the feature in the describing half."""
    words: list[Lift]
    """Words on which it fires."""
    context: list[Lift]
    """Words among the `CONTEXT` pairs before a firing, in the same text."""
    sources: list[Lift]


class Describer:
    """Describes features of a sample from the half of the documents that is not held out. `seed` draws the shifts."""

    def __init__(self, sample: Sample, sources: list[str], seed: int) -> None:
        self._sample = sample
        self._here = sample.kept_N & ~sample.second_W[sample.window_N]
        rows = np.flatnonzero(self._here)
        self._number = np.cumsum(self._here) - 1
        self.pairs = len(rows)
        """N."""
        source_N = sample.source_W[sample.window_N[rows]]
        self._document_N = sample.document_W[sample.window_N[rows]]
        self._places = {
            "words": (sample.word_N[rows, None], sample.words),
            "context": (before(sample.word_N, sample.window_N, CONTEXT)[rows], sample.words),
            "sources": (source_N[:, None], sources),
        }
        self._seed = seed

    def describe(self, column: int) -> Description:
        row, value = self._sample.firings(column)
        here = self._here[row]
        row_C, value_C = self._number[row[here]], value[here]
        if len(row_C) < MIN_FIRINGS:
            why = f"fires {len(row_C)} times in the {self.pairs:,} pairs that describe: too seldom"
            return Description(why, len(row_C), [], [], [])
        found = {
            name: characteristic(category_NJ, names, self._document_N, row_C, value_C, self._seed)
            for name, (category_NJ, names) in self._places.items()
        }
        return Description(_text(**found), len(row_C), **found)


def _text(words: list[Lift], context: list[Lift], sources: list[Lift]) -> str:
    """A part for each kind of evidence, with what chance gives in brackets: `on herb 41x (2.2); after ...`."""
    kinds = [("on", words), ("after", context), ("in", sources)]
    found = sorted((kind for kind in kinds if kind[1]), key=lambda kind: -kind[1][0].nats)
    parts = [f"{preposition} " + ", ".join(map(_named, lifts[:_NAMED])) for preposition, lifts in found]
    return "; ".join(parts) or "no word, context or source beyond chance"


def _named(one: Lift) -> str:
    # Quoted where it would not be seen or would run into what is around it.
    name = one.name if one.name[:1].isalnum() and " " not in one.name else f"'{one.name}'"
    return f"{name} {one.lift:.{0 if one.lift >= 10 else 1}f}x ({one.chance:.1f})"


def before(word_N: NDArray[np.int32], window_N: NDArray[np.int32], reach: int) -> NDArray[np.int32]:
    """(N, reach): the different words among the `reach` pairs before each, within its text; -1 fills up."""
    n = len(word_N)
    found_NJ = np.full((n, reach), -1, np.int32)
    for back in range(1, min(reach, n - 1) + 1):
        same = window_N[back:] == window_N[:-back]
        found_NJ[back:, back - 1] = np.where(same, word_N[:-back], -1)
    found_NJ.sort(axis=1)
    again = found_NJ[:, 1:] == found_NJ[:, :-1]
    found_NJ[:, 1:][again] = -1
    return found_NJ


def characteristic(
    category_NJ: NDArray[np.int32],
    names: list[str],
    document_N: NDArray[np.int64],
    row_C: NDArray[np.int64],
    value_C: NDArray[np.float32],
    seed: int,
) -> list[Lift]:
    """What is characteristic of a feature, most telling first: what has a lift above its own chance, and tells more
    than anything told in any of the shifts, by a quarter to three quarters of the pairs.

    Args:
        category_NJ: which of the `names` (K) each pair has, different ones within a row; -1 fills up.
        document_N: the document that each pair is in.
        row_C, value_C: where the feature fires, and how strongly.
        seed: of the shifts.
    """
    n, total = len(category_NJ), float(value_C.sum())
    if not total:
        return []
    average = total / n
    counts_K = np.bincount(category_NJ[category_NJ >= 0], minlength=len(names))

    def measured(row: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(lift, nats) of each category, with the firings at these pairs."""
        found_CJ = category_NJ[row]
        inside = found_CJ >= 0
        found = found_CJ[inside]
        weights = np.broadcast_to(value_C[:, None], found_CJ.shape)[inside]
        mass_K = np.bincount(found, weights, minlength=len(names)).astype(np.float64)
        lift_K = (mass_K + PRIOR * average) / (counts_K + PRIOR) / average
        looked_at_K = (counts_K >= MIN_COUNT) & (np.bincount(found, minlength=len(names)) >= MIN_WORD_FIRINGS)
        return lift_K, np.where(looked_at_K, _nats(lift_K, counts_K / n), 0)

    chance_K, most_told = np.zeros(len(names)), 0.0
    shifts = np.random.default_rng(seed).integers(n // 4, max(n // 4 + 1, 3 * n // 4), SHIFTS)
    for shift in shifts.tolist():
        lift_K, nats_K = measured((row_C + shift) % n)
        np.maximum(chance_K, lift_K, out=chance_K)
        most_told = max(most_told, float(nats_K.max(initial=0)))
    lift_K, nats_K = measured(row_C)
    met = np.stack([category_NJ[row_C].ravel(), np.repeat(document_N[row_C], category_NJ.shape[1])])
    named = np.unique(met[:, met[0] >= 0], axis=1)[0]
    several_K = np.bincount(named, minlength=len(names)) >= MIN_DOCUMENTS
    beyond = np.flatnonzero(several_K & (nats_K > most_told) & (lift_K > chance_K))
    return [
        Lift(names[k], float(lift_K[k]), float(chance_K[k]), float(nats_K[k]))
        for k in beyond[np.lexsort((beyond, -nats_K[beyond]))][:MOST].tolist()
    ]


def _nats(lift_K: NDArray[np.float64], base_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where the lift is at most 1: what a feature avoids describes it badly."""
    share_K = np.clip(lift_K * base_K, 0, 1)
    with_it = np.where(share_K > 0, share_K * np.log(lift_K), 0)
    ratio = np.divide(1 - share_K, 1 - base_K, out=np.ones_like(share_K), where=(share_K < 1) & (base_K < 1))
    return np.where(lift_K > 1, with_it + (1 - share_K) * np.log(ratio), 0)
