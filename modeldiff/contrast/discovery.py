"""Which differences hold: contexts and words are chosen on one half of the documents and measured on the other.

1. Discover: statistics of all contexts on the first half, against their permutation null; those beyond chance,
   strongest first, with the words that make each of them. Contexts that say the same, by the places where they hold or
   by their words, become one candidate.
2. Verify: for each candidate, on the second half, how much more often than elsewhere one model says any of its words
   and the other none. Its p-value is the larger of that of the permutation test and that of an effect of at most the
   smallest one that is asked for. Benjamini and Hochberg's procedure over the candidates, weighted by how far beyond
   chance the first half showed them, gives the list. Its stated false discovery rate rests on the second half alone:
   how the first half was searched cannot spoil it.
3. Chance: the same in worlds in which the documents' continuations are exchanged.

Legend: P places, C contexts, V words, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.contrast.contexts import Contexts
from modeldiff.contrast.statistics import (
    SUMS,
    Bools,
    Floats,
    Gap,
    Longs,
    Null,
    context_z,
    everywhere_z,
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
from modeldiff.sides import OTHER, SIDES

# Permutations of the discovering half, which are the chance worlds too; and of the test on the other half.
PERMUTATIONS, TEST_PERMUTATIONS = 40, 1999
# Contexts whose statistic so small a share of the null reaches go on. It decides what is looked at, not what is listed.
DISCOVERY_P = 0.01
# Candidates that are verified at most.
CANDIDATES = 60
# Standard errors below the gap by which one context is clearer than another.
CLEAR = 3.3
# So much of the places is left outside of the clear contexts, or else everywhere is looked for in all of them.
OUTSIDE = 0.5
# A word of a candidate has at least this |z|; the first one always counts.
_LEAST_Z = 2.5
# What is listed and verified are the most telling ones of so many words that are said in at most this share of the
# continuations elsewhere, unless all words together tell so many times as much.
POOL, COMMON, MUCH = 12, 0.06, 1.3
# Contexts say the same when they share this much of the places of both (Jaccard), or half as much and a word said by
# the same model, or so many such words, or this share of the shorter list of words.
SAME_PLACES, SAME_WORDS, SAME_SHARE = 0.4, 3, 0.5


@dataclass(frozen=True)
class Candidate:
    """A context with the words that one model says there and the other does not, as the first half showed them."""

    context: int
    """Index of the context."""
    standardised: float
    top: list[int]
    """The words that make the context's statistics (`top_words`)."""
    words: dict[str, list[int]]
    """By side: the words that together tell the models apart best (`telling`)."""
    same: list[int] = field(default_factory=list)
    """Other contexts that say the same, strongest first."""


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
    """What a contrast found."""

    contexts: Contexts
    """Those that were compared."""
    first_P: Bools
    """True for the places of the half that discovers."""
    beyond: int
    """Contexts beyond chance on the first half."""
    entries: list[Verified]
    """The verified ones first, by the lower end of the effect's interval; then the others."""
    chance: float
    """Entries that are verified in a world without any relation, on average."""

    @property
    def found(self) -> int:
        return sum(one.verified for one in self.entries)


def contrast(
    contexts: Contexts,
    said: Said,
    document_P: Longs,
    *,
    rate: float,
    smallest: float,
    least: int,
    most: float,
    seed: int,
    worlds: int = 20,
    note: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """The differences.

    Args:
        document_P: the document of each place; places of one document stand together.
        rate: false discovery rate of the list.
        smallest: effects are shown to be larger than this.
        least, most: see `Contexts.often_enough`.
        worlds: chance worlds, at most PERMUTATIONS.
        note: told of every permutation that is done.
    """
    first_P = halves(document_P, seed)
    contexts = contexts.often_enough(first_P, least=least, most=most)
    first, second = np.flatnonzero(first_P), np.flatnonzero(~first_P)
    on_first, on_second = contexts.on_CP[:, first], contexts.on_CP[:, second]
    said_first, said_second = said.rows(first), said.rows(second)
    always = np.array([one.kind == "everywhere" for one in contexts.which], bool)
    world = _World(on_first, always, said_first, document_P[first], seed + 1)
    statistics_RCS = np.empty((PERMUTATIONS, len(contexts), len(SUMS)))
    z_of_world: list[Floats] = []
    for r in range(PERMUTATIONS):
        z_world = world.z(r)
        statistics_RCS[r] = statistics(z_world)
        if r < worlds:
            z_of_world.append(z_world)
        note(1)
    null = null_of(statistics_RCS)
    test = _Test(on_second, document_P[second], always, rate, smallest, seed + 3)
    z_CV = _z(on_first, always, said_first)
    candidates, beyond = candidates_of(z_CV, null, on_first, always, said_first, said_first, smallest)
    entries = test.run(candidates, said_second)
    chance = []
    for r, order_P in enumerate(permutations(document_P[second], worlds, seed + 2)):
        of_world, _ = candidates_of(z_of_world[r], null, on_first, always, world.said(r), world.exchanged(r), smallest)
        verified = test.run(of_world, said_second.rows(order_P), exchange=seed + r)
        chance.append(sum(one.verified for one in verified))
    return Outcome(contexts, first_P, beyond, entries, float(np.mean(chance)) if chance else 0.0)


def _z(on_CP: sparse.csr_matrix, always: Bools, said: Said) -> Floats:
    """z of all contexts."""
    z_CV = context_z(on_CP, said)
    if always.any():
        z_CV[always] = everywhere_z(said)
    return z_CV


class _World:
    """The discovering half where nothing is related: documents' continuations have changed their places, and the models
    their parts for what is compared everywhere."""

    def __init__(self, on_CP: sparse.csr_matrix, always: Bools, said: Said, document_P: Longs, seed: int) -> None:
        self._on_CP, self._always, self._said = on_CP, always, said
        self._document_P, self._seed = document_P, seed
        self._orders = list(permutations(document_P, PERMUTATIONS, seed))

    def said(self, r: int) -> Said:
        """What is said in world number r."""
        return self._said.rows(self._orders[r])

    def z(self, r: int) -> Floats:
        """(C, V) of world number r."""
        z_CV = context_z(self._on_CP, self.said(r))
        if self._always.any():
            z_CV[self._always] = everywhere_z(self.exchanged(r))
        return z_CV

    def exchanged(self, r: int) -> Said:
        """The same for what is compared everywhere."""
        return exchanged(self._said, self._document_P, self._seed + r)


def candidates_of(
    z_CV: Floats,
    null: Null,
    on_CP: sparse.csr_matrix,
    always: Bools,
    said: Said,
    said_everywhere: Said,
    smallest: float,
) -> tuple[list[Candidate], int]:
    """(at most CANDIDATES candidates, number of contexts beyond chance).

    Of contexts that say the same, one leads that is clear and strong: a context that holds in many places may be beyond
    chance by far because it holds where several things differ. What one model says more in some context it says more
    on average, too: everywhere comes last, is looked for outside of the clear contexts, and without the words of any
    other candidate.

    Args:
        said_everywhere: what is said, for what is compared everywhere.
        smallest: a context is clear when its `Telling.clearness` is larger.
    """
    standardised_C = null.standardised(statistics(z_CV))
    beyond = np.flatnonzero(null.p(standardised_C) <= DISCOVERY_P)
    contexts = [c for c in beyond.tolist() if not always[c]]
    told = {c: telling(z_CV[c], said, on_CP[c].toarray()[0] > 0) for c in contexts}
    # Gap times strength: by the gap alone the luck of few places would lead, by the strength alone what holds in many.
    # Ties go to the simpler kind of context, which costs nothing: contexts come in that order.
    contexts.sort(key=lambda c: -max(0.0, told[c].clearness) * standardised_C[c])
    found = _folded(contexts, z_CV, standardised_C, told, on_CP)
    clear = [one.context for one in found if told[one.context].clearness > smallest]
    outside_P = np.asarray(on_CP[clear].sum(axis=0))[0] == 0
    if outside_P.mean() < OUTSIDE:
        outside_P[:] = True
    for c in (c for c in beyond.tolist() if always[c]):
        z_V = everywhere_z(said_everywhere.rows(np.flatnonzero(outside_P)))
        z_V[[w for one in found for side in SIDES for w in one.words[side]]] = 0
        of_rest = np.tile(statistics(z_V[None]), (len(z_CV), 1))
        strength = null.standardised(of_rest)[c]
        if null.p(np.array([strength]))[0] <= DISCOVERY_P:
            words = telling(z_V, said_everywhere, on_CP[c].toarray()[0] > 0).words
            found.append(Candidate(c, float(strength), top_words(z_V), words))
    return found, len(beyond)


def _folded(
    contexts: list[int], z_CV: Floats, standardised_C: Floats, told: dict[int, Telling], on_CP: sparse.csr_matrix
) -> list[Candidate]:
    """The first contexts of the list that do not say the same as one before, with those that do."""
    places_C = np.asarray(on_CP.sum(axis=1))[:, 0]
    found: list[Candidate] = []
    for c in contexts:
        top = top_words(z_CV[c])
        same = next((one for one in found if _says_the_same(c, top, one, on_CP, places_C)), None)
        if same:
            same.same.append(c)
        elif top and len(found) < CANDIDATES:
            found.append(Candidate(c, float(standardised_C[c]), top, told[c].words))
    return found


def top_words(z_V: Floats, count: int = SUMS[-1]) -> list[int]:
    """The words of the largest |z|, strongest first: w where A says it more, -1 - w where B does."""
    best = np.argsort(-np.abs(z_V), kind="stable")[:count].tolist()
    return [w if z_V[w] > 0 else -1 - w for i, w in enumerate(best) if abs(z_V[w]) >= (_LEAST_Z if i else 1e-9)]


@dataclass(frozen=True)
class Telling:
    """The words by which a context tells the models apart."""

    words: dict[str, list[int]]
    """By side, the words of which "says any of them" differs most."""
    clearness: float
    """Lower end of the larger gap of either side's words. Places are taken for independent and the interval is wide: of
    few places a large gap is soon there by luck."""


def telling(z_V: Floats, said: Said, on_P: Bools) -> Telling:
    """The words by which a context tells the models apart best.

    A word that is said elsewhere all the time hides the others, and looks better on the half that it was chosen on than
    it is. So the words come from those that are rare elsewhere, unless all words tell the models apart much better.
    """
    pool = top_words(z_V, 4 * POOL)
    columns = {side: said.by_side[side][:, [w if w >= 0 else -1 - w for w in pool]].toarray() for side in SIDES}
    rare = np.flatnonzero(_common(list(columns.values()), on_P) <= COMMON)[:POOL].tolist()
    chosen, low = {}, -1.0
    for side, other in (("a", "b"), ("b", "a")):
        of_side = [i for i, w in enumerate(pool) if (w >= 0) == (side == "a")]
        pools = ([i for i in rare if i in of_side], [i for i in range(min(SUMS[-1], len(pool))) if i in of_side])
        of_rare, of_all = (_best(columns[side], columns[other], which, on_P) for which in pools)
        best = of_all if of_all.t > MUCH * of_rare.t else of_rare
        chosen[side] = [pool[i] if side == "a" else -1 - pool[i] for i in best.columns]
        low = max(low, best.gap - CLEAR * best.error)
    return Telling(chosen, low)


def _common(columns: list[Floats], on_P: Bools) -> Floats:
    """How common each word is elsewhere. Everywhere has no elsewhere: there the model that says it less shows that."""
    if on_P.all():
        return np.min([one.mean(axis=0) for one in columns], axis=0)
    return np.mean([one[~on_P].mean(axis=0) for one in columns], axis=0)


@dataclass(frozen=True)
class _Best:
    columns: list[int]
    gap: float
    error: float

    @property
    def t(self) -> float:
        return self.gap / self.error


def _best(mine_PW: Floats, theirs_PW: Floats, which: list[int], on_P: Bools) -> _Best:
    """Each word is taken, in order, if with it "says any of them" differs by more standard errors."""
    floor = 1 / on_P.sum()
    best, mine_P, theirs_P = _Best([], 0.0, floor), np.zeros(len(on_P)), np.zeros(len(on_P))
    for column in which:
        more_P, most_P = np.maximum(mine_P, mine_PW[:, column]), np.maximum(theirs_P, theirs_PW[:, column])
        on, off = (more_P - most_P)[on_P], (more_P - most_P)[~on_P]
        gap, variance = on.mean(), on.var() / len(on) + floor**2
        if len(off):
            gap, variance = gap - max(0.0, off.mean()), variance + off.var() / len(off)
        tried = _Best([*best.columns, column], float(gap), float(np.sqrt(variance)))
        if tried.t > best.t:
            best, mine_P, theirs_P = tried, more_P, most_P
    return best


def _says_the_same(
    context: int, top: list[int], other: Candidate, on_CP: sparse.csr_matrix, places_C: NDArray[np.float64]
) -> bool:
    common = len(set(top) & set(other.top))
    if common >= SAME_WORDS or (common and common >= SAME_SHARE * min(len(top), len(other.top))):
        return True
    both = float(on_CP[context].multiply(on_CP[other.context]).sum())
    either = places_C[context] + places_C[other.context] - both
    return both >= SAME_PLACES / (2 if common else 1) * either


class _Test:
    """The second half."""

    def __init__(
        self, on_CP: sparse.csr_matrix, document_P: Longs, always: Bools, rate: float, smallest: float, seed: int
    ) -> None:
        self._on_CP, self._document_P, self._always = on_CP, document_P, always
        self._rate, self._smallest, self._seed = rate, smallest, seed
        self._orders: NDArray[np.int64] | None = None

    def run(self, candidates: list[Candidate], said: Said, *, exchange: int | None = None) -> list[Verified]:
        """The candidates by what the second half says, verified ones first.

        Args:
            exchange: a seed: the models change their parts at random for what is compared everywhere.
        """
        measured = [self._measured(one, said, exchange) for one in candidates]
        weight_N = np.array([one.standardised**2 for one in candidates])
        verified = rejected(np.array([p for _, p in measured]), self._rate, weight_N)
        entries = [
            Verified(one, gaps, p, bool(ok))
            for one, (gaps, p), ok in zip(candidates, measured, verified, strict=True)
            if gaps
        ]
        return sorted(entries, key=lambda one: (not one.verified, -one.effect.low()))

    def _measured(self, one: Candidate, said: Said, exchange: int | None) -> tuple[dict[str, Gap], float]:
        on_P = self._on_CP[one.context].toarray()[0] > 0
        if exchange is not None and self._always[one.context]:
            said = exchanged(said, self._document_P, exchange)
        score_of = {side: says_any(said, one.words[side], side) for side in SIDES if one.words[side]}
        gaps = {side: gap_of(score_P, on_P, self._document_P) for side, score_P in score_of.items()}
        if not gaps:
            return gaps, 1.0
        p_of = {side: gap.p_above(self._smallest) for side, gap in gaps.items()}
        for side, p in p_of.items():
            if len(gaps) * p <= self._rate:  # else the dearer test cannot change the answer
                p_of[side] = max(p, permuted_p(score_of[side], on_P, self._document_P, self.orders, self._seed))
        # Either model's words may show it: two chances.
        return gaps, min(1.0, len(gaps) * min(p_of.values()))

    @property
    def orders(self) -> NDArray[np.int64]:
        """(R, P) permutations."""
        if self._orders is None:
            self._orders = np.array(list(permutations(self._document_P, TEST_PERMUTATIONS, self._seed)))
        return self._orders


def says_any(said: Said, words: list[int], side: str) -> Floats:
    """(P,) share of the draws in which a model says any of the words, minus the other model's."""
    other = OTHER[side]
    mine, theirs = (any_of(said, words, one) for one in (side, other))
    return mine - theirs


def any_of(said: Said, words: list[int], side: str) -> Floats:
    """(P,) share of the draws in which a model says any of the words; of several draws, the largest share of a word."""
    return np.asarray(said.by_side[side][:, words].max(axis=1).todense(), np.float64)[:, 0]
