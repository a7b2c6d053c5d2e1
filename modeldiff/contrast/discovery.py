"""Which differences hold: contexts and words are chosen on one half of the documents and measured on the other.

1. Discover: candidates of the first half (candidates.py), contexts with the words that tell the models apart there.
2. Verify, on the second half. For the words of one model, a place's score is 1 where this model says any of them, less
   1 where the other one does. The gap is the mean score where the context holds, or this minus the mean elsewhere:
   whichever has the smaller lower end. p is the larger of two p-values: of a permutation test, and of a t-test of a
   gap of at most `smallest`. Benjamini and Hochberg's procedure over the candidates, weighted by the squares of their
   statistics on the first half, gives the list. Its false discovery rate rests on the second half alone: how the first
   half was searched cannot spoil it.
3. Chance: the same search in worlds in which documents have exchanged their continuations.

Legend: P places, C contexts, V words, S sums, N candidates, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from modeldiff.contrast.candidates import Candidate, Half, candidates_of
from modeldiff.contrast.contexts import Contexts
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.contrast.statistics import (
    SUMS,
    Bools,
    Floats,
    Gap,
    Longs,
    exchanged,
    gap_of,
    halves,
    null_of,
    permutations,
    permuted_p,
    rejected,
    statistics,
)
from modeldiff.contrast.words import Said
from modeldiff.sides import OTHER

# Permutations of the discovering half, which are the chance worlds too; and of the test on the other half.
PERMUTATIONS, TEST_PERMUTATIONS = 40, 1999
# Chance worlds in which the whole search is done.
WORLDS = 20


@dataclass(frozen=True)
class Verified:
    """What the second half says of a candidate."""

    candidate: Candidate
    gaps: dict[str, Gap]
    """By side that has words: how much more often it says any of them than the other model (`gap_of`)."""
    p: float
    verified: bool

    @property
    def side(self) -> str:
        """The side whose words show the larger effect, by the lower end of the interval."""
        return max(self.gaps, key=lambda side: self.gaps[side].low())

    @property
    def effect(self) -> Gap:
        return self.gaps[self.side]


@dataclass(frozen=True)
class Outcome:
    contexts: Contexts
    """Those that were compared."""
    first_P: Bools
    """True for the places of the half that discovers."""
    entries: list[Verified]
    """The verified ones first, by the lower end of the effect's interval; then the others."""
    chance: float
    """Entries that are verified in a chance world, on average."""

    @property
    def found(self) -> int:
        return sum(one.verified for one in self.entries)


def contrast(
    contexts: Contexts,
    said: Said,
    document_P: Longs,
    settings: ContrastSettings,
    *,
    worlds: int = WORLDS,
    note: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """The differences, by the settings rate, smallest, least, most and seed.

    document_P: the document of each place; places of one document stand together. worlds: chance worlds, at most
    PERMUTATIONS. note: told of every permutation that is done, of the first half and of the second.
    """
    seed = settings.seed
    first_P = halves(document_P, seed)
    contexts = contexts.often_enough(first_P, least=settings.least, most=settings.most)

    def half(part_P: Bools) -> Half:
        there = said.rows(part_P)
        return Half(Contexts(contexts.which, contexts.on_CP[:, part_P]), document_P[part_P], there, there)

    first, second = half(first_P), half(~first_P)
    orders = list(permutations(first.document_P, PERMUTATIONS, seed + 1))

    def by_chance(r: int) -> Half:
        parts = exchanged(first.said, first.document_P, seed + 1 + r)
        return replace(first, said=first.said.rows(orders[r]), said_everywhere=parts)

    statistics_RCS = np.empty((PERMUTATIONS, len(contexts), len(SUMS)))
    z_of_world: list[Floats] = []
    for r in range(PERMUTATIONS):
        z_CV = by_chance(r).z()
        statistics_RCS[r] = statistics(z_CV)
        if r < worlds:
            z_of_world.append(z_CV)
        note(1)
    null = null_of(statistics_RCS)
    test_orders_RP = np.array(list(permutations(second.document_P, TEST_PERMUTATIONS, seed + 3)))

    def search(first: Half, z_CV: Floats, second: Half) -> list[Verified]:
        candidates = candidates_of(first, z_CV, null, settings.smallest)
        return verify(second, candidates, test_orders_RP, settings)

    entries = search(first, first.z(), second)
    chance = []
    for r, order_P in enumerate(permutations(second.document_P, worlds, seed + 2)):
        unrelated = second.said.rows(order_P)
        parts = exchanged(unrelated, second.document_P, seed + r)
        found = search(by_chance(r), z_of_world[r], replace(second, said=unrelated, said_everywhere=parts))
        chance.append(sum(one.verified for one in found))
        note(1)
    return Outcome(contexts, first_P, entries, float(np.mean(chance)) if chance else 0.0)


def verify(half: Half, candidates: list[Candidate], orders_RP: Longs, settings: ContrastSettings) -> list[Verified]:
    """The candidates by what the second half says, verified ones first."""
    measured = [_measured(half, one, orders_RP, settings) for one in candidates]
    weight_N = np.array([one.standardised**2 for one in candidates])
    p_N = np.array([p for _, p in measured])
    # However promising, none whose own p-value is above the rate: its permutations were not even tried.
    verified_N = (rejected(p_N, settings.rate, weight_N) & (p_N <= settings.rate)).tolist()
    entries = [
        Verified(one, gaps, p, verified)
        for one, (gaps, p), verified in zip(candidates, measured, verified_N, strict=True)
        if gaps
    ]
    return sorted(entries, key=lambda one: (not one.verified, -one.effect.low()))


def _measured(
    half: Half, candidate: Candidate, orders_RP: Longs, settings: ContrastSettings
) -> tuple[dict[str, Gap], float]:
    """(by side that has words: its gap; p-value). Either model's words may show the difference: two chances."""
    said, on_P = half.said_for(candidate.context), half.contexts.on(candidate.context)
    words_of = {side: words for side, words in candidate.words.items() if words}
    gaps, p_values = {}, [1.0]
    for side, words in words_of.items():
        score_P = any_of(said, words, side) - any_of(said, words, OTHER[side])
        gaps[side] = gap_of(score_P, on_P, half.document_P)
        p = len(words_of) * gaps[side].p_above(settings.smallest)
        if p <= settings.rate:  # else the dearer test cannot change the answer
            permuted = permuted_p(score_P, on_P, half.document_P, orders_RP, settings.seed + 3)
            p = max(p, len(words_of) * permuted)
        p_values.append(p)
    return gaps, min(p_values)


def any_of(said: Said, words: list[int], side: str) -> Floats:
    """(P,) share of the draws in which a model says any of the words."""
    any_DP = [one[:, words].max(axis=1).toarray()[:, 0] for one in said.by_draw[side]]
    return np.asarray(np.mean(any_DP, axis=0), np.float64)
