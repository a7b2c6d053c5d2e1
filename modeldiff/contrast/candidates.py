"""The first half of the documents: which contexts are beyond chance there, and which words tell the models apart.

A context's statistic is how far the sums of its largest |z| lie above their permutation null (statistics.py). A context
beyond chance becomes a candidate with two lists of words: what A says there and B does not, and what B says there.

    score of a place = 1 where one model says any of its words, less 1 where the other one does
    gap = mean score where the context holds, less the mean elsewhere if that is above 0
    clearness = gap - CLEAR x its standard error, of the better list

Contexts that say the same, by the places where they hold or by their words, are one candidate.

Legend: P places, C contexts, V words, W some of the words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import sparse

from modeldiff.contrast.contexts import Contexts
from modeldiff.contrast.statistics import SUMS, Bools, Floats, Longs, Null, context_z, everywhere_z, statistics
from modeldiff.contrast.words import Said
from modeldiff.sides import OTHER, SIDES

# A context is beyond chance when at most this share of the null reaches its statistic. It decides what is looked at,
# not what is listed.
DISCOVERY_P = 0.01
# Candidates at most.
CANDIDATES = 60
# Standard errors below the gap that are clear.
CLEAR = 3.3
# So much of the places is left outside of the clear candidates, or else everywhere is looked for in all of them.
OUTSIDE = 0.5
# A word of a candidate has at least this |z|; the first one always counts.
_LEAST_Z = 2.5
# A candidate's words come from the POOL most telling ones that are said in at most the share COMMON of the
# continuations elsewhere, unless the most telling ones of all tell MUCH times as much.
POOL, COMMON, MUCH = 12, 0.06, 1.3
# Contexts say the same when they share SAME_PLACES of the places of both (Jaccard), or half as much and a word said by
# the same model, or SAME_WORDS such words, or SAME_SHARE of the shorter list of words.
SAME_PLACES, SAME_WORDS, SAME_SHARE = 0.4, 3, 0.5


@dataclass(frozen=True)
class Half:
    """One half of the documents: where the contexts hold, and what the models say."""

    contexts: Contexts
    document_P: Longs
    said: Said
    said_everywhere: Said
    """What is said, for what is compared everywhere. In a chance world it is another thing than `said`: that documents
    exchange their continuations changes no mean over all places, so the models exchange their parts instead."""

    def said_for(self, context: int) -> Said:
        return self.said_everywhere if self.contexts.always_C[context] else self.said

    def z(self) -> Floats:
        """(C, V) z of every context and word."""
        z_CV = context_z(self.contexts.on_CP, self.said)
        z_CV[self.contexts.always_C] = everywhere_z(self.said_everywhere)
        return z_CV


@dataclass(frozen=True)
class Candidate:
    """A context with the words that one model says there and the other does not."""

    context: int
    """Index of the context."""
    standardised: float
    """Its statistic, in standard deviations of its null (`Null.standardised`)."""
    top: list[tuple[str, int]]
    """The words that make its statistic (`top_words`)."""
    words: dict[str, list[int]]
    """By side: the words that together tell the models apart best (`telling`)."""
    clearness: float
    same: list[int] = field(default_factory=list)
    """Other contexts that say the same, clearest and strongest first."""


def candidates_of(half: Half, z_CV: Floats, null: Null, smallest: float) -> list[Candidate]:
    """At most CANDIDATES candidates, and everywhere; a candidate is clear when its clearness is above `smallest`."""
    standardised_C = null.standardised(statistics(z_CV))
    beyond_C, always_C = null.p(standardised_C) <= DISCOVERY_P, half.contexts.always_C
    found = _leaders(half, z_CV, standardised_C, np.flatnonzero(beyond_C & ~always_C).tolist())
    for c in np.flatnonzero(beyond_C & always_C).tolist():
        found += _everywhere(half, c, found, null, smallest)
    return found


def _leaders(half: Half, z_CV: Floats, standardised_C: Floats, beyond: list[int]) -> list[Candidate]:
    """Of contexts that say the same, the one with the largest product of clearness and strength leads: by clearness
    alone the luck of few places would lead, by strength alone what holds in many, because several things differ
    there."""
    made = [Candidate(c, float(standardised_C[c]), top_words(z_CV[c]), *telling(half, c, z_CV[c])) for c in beyond]
    # Ties go to the simpler kind of context, which costs nothing: contexts come in that order.
    made.sort(key=lambda one: -max(0.0, one.clearness) * one.standardised)
    found: list[Candidate] = []
    for one in made:
        leading = next((other for other in found if _say_the_same(one, other, half.contexts.on_CP)), None)
        if leading:
            leading.same.append(one.context)
        elif one.top and len(found) < CANDIDATES:
            found.append(one)
    return found


def _everywhere(half: Half, context: int, found: list[Candidate], null: Null, smallest: float) -> list[Candidate]:
    """Everywhere (the number of its context) as a candidate, or nothing. What one model says more in some context it
    says more on average, too: so it is looked for outside of the clear candidates, and without the words of any."""
    clear = [one.context for one in found if one.clearness > smallest]
    outside_P = np.asarray(half.contexts.on_CP[clear].sum(axis=0))[0] == 0
    if outside_P.mean() < OUTSIDE:
        outside_P[:] = True
    z_V = everywhere_z(half.said_everywhere.rows(outside_P))
    z_V[[w for one in found for words in one.words.values() for w in words]] = 0
    standardised_C = null.standardised(statistics(z_V[None]))
    if null.p(standardised_C)[context] > DISCOVERY_P:
        return []
    return [Candidate(context, float(standardised_C[context]), top_words(z_V), *telling(half, context, z_V))]


def _say_the_same(one: Candidate, other: Candidate, on_CP: sparse.csr_matrix) -> bool:
    common = len(set(one.top) & set(other.top))
    if common >= SAME_WORDS or (common and common >= SAME_SHARE * min(len(one.top), len(other.top))):
        return True
    on, on_other = on_CP[one.context], on_CP[other.context]
    both = float(on.multiply(on_other).sum())
    return both >= SAME_PLACES / (2 if common else 1) * (on.nnz + on_other.nnz - both)


def top_words(z_V: Floats, count: int = SUMS[-1]) -> list[tuple[str, int]]:
    """The words of the largest |z|, strongest first, each behind the side that says it more."""
    best = np.argsort(-np.abs(z_V), kind="stable")[:count].tolist()
    return [("a" if z_V[w] > 0 else "b", w) for i, w in enumerate(best) if abs(z_V[w]) >= (_LEAST_Z if i else 1e-9)]


def telling(half: Half, context: int, z_V: Floats) -> tuple[dict[str, list[int]], float]:
    """(by side, the words by which a context tells the models apart best; clearness of the better side).

    A word that is said elsewhere all the time hides the others, and looks better on the half that it was chosen on than
    it is. So the words come from those that are rare elsewhere, unless all words tell the models apart much better.
    """
    said, on_P = half.said_for(context), half.contexts.on(context)
    pool = top_words(z_V, 4 * POOL)
    columns = {side: said.by_side[side][:, [w for _, w in pool]].toarray() for side in SIDES}
    rare = np.flatnonzero(_elsewhere(columns, on_P) <= COMMON)[:POOL].tolist()
    words, clearness = {}, -1.0
    for side in SIDES:
        mine_PW, theirs_PW = columns[side], columns[OTHER[side]]
        of_rare, of_all = (
            _any_best(mine_PW, theirs_PW, on_P, [i for i in which if pool[i][0] == side])
            for which in (rare, range(min(SUMS[-1], len(pool))))
        )
        best = of_all if of_all.t > MUCH * of_rare.t else of_rare
        words[side] = [pool[i][1] for i in best.columns]
        clearness = max(clearness, best.gap - CLEAR * best.error)
    return words, clearness


def _elsewhere(columns: dict[str, Floats], on_P: Bools) -> Floats:
    """(W,) how often the models say the words where the context does not hold. Everywhere has no elsewhere: there the
    model that says a word less shows how common it is."""
    if on_P.all():
        return np.min([columns[side].mean(axis=0) for side in SIDES], axis=0)
    return np.mean([columns[side][~on_P].mean(axis=0) for side in SIDES], axis=0)


class _AnyOf(NamedTuple):
    """How much more often one model says any of some words (columns of an array) than the other."""

    columns: list[int]
    gap: float
    error: float

    @property
    def t(self) -> float:
        return self.gap / self.error


def _any_best(mine_PW: Floats, theirs_PW: Floats, on_P: Bools, which: Iterable[int]) -> _AnyOf:
    """Forward selection: a word joins, in order, if with it "says any of them" differs by more standard errors. Places
    are taken for independent, and a place's worth of error is added: a few places soon show a large gap by luck."""
    floor = 1 / on_P.sum()
    best, mine_P, theirs_P = _AnyOf([], 0.0, floor), np.zeros(len(on_P)), np.zeros(len(on_P))
    for column in which:
        more_P, most_P = np.maximum(mine_P, mine_PW[:, column]), np.maximum(theirs_P, theirs_PW[:, column])
        on, off = (more_P - most_P)[on_P], (more_P - most_P)[~on_P]
        gap, variance = on.mean(), on.var() / len(on) + floor**2
        if len(off):
            gap, variance = gap - max(0.0, off.mean()), variance + off.var() / len(off)
        tried = _AnyOf([*best.columns, column], float(gap), float(np.sqrt(variance)))
        if tried.t > best.t:
            best, mine_P, theirs_P = tried, more_P, most_P
    return best
