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

Legend: P places, C contexts, V words, W some of the words, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import sparse

from modeldiff.contrast.contexts import Contexts
from modeldiff.contrast.settings import ContrastSettings
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
# Chance worlds that the whole search is done in.
WORLDS = 20
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
    """Its statistic, in standard deviations of its null (`Null.standardised`)."""
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
    contexts: Contexts
    """Those that were compared."""
    first_P: Bools
    """True for the places of the half that discovers."""
    entries: list[Verified]
    """The verified ones first, by the lower end of the effect's interval; then the others."""
    chance: float
    """Entries that are verified in a world without any relation, on average."""

    @property
    def found(self) -> int:
        return sum(one.verified for one in self.entries)


@dataclass(frozen=True)
class Half:
    """Where the contexts hold in one half of the documents."""

    on_CP: sparse.csr_matrix
    always_C: Bools
    """Which context is everywhere."""
    document_P: Longs

    def on(self, context: int) -> Bools:
        """(P,) where a context holds."""
        return self.on_CP[context].toarray()[0] > 0

    def z(self, said: Said, said_everywhere: Said) -> Floats:
        """(C, V) z of every context and word.

        Args:
            said_everywhere: what is said, for what is compared everywhere. Like `said`, but for the chance worlds: in
                them documents' continuations have changed their places, or else the models their parts.
        """
        z_CV = context_z(self.on_CP, said)
        z_CV[self.always_C] = everywhere_z(said_everywhere)
        return z_CV


def contrast(
    contexts: Contexts,
    said: Said,
    document_P: Longs,
    settings: ContrastSettings,
    *,
    worlds: int = WORLDS,
    note: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """The differences.

    Args:
        document_P: the document of each place; places of one document stand together.
        settings: rate, smallest, least, most and seed count.
        worlds: chance worlds, at most PERMUTATIONS.
        note: told of every permutation that is done.
    """
    seed = settings.seed
    first_P = halves(document_P, seed)
    contexts = contexts.often_enough(first_P, least=settings.least, most=settings.most)
    always_C = np.array([one.kind == "everywhere" for one in contexts.which], bool)
    first, second = (Half(contexts.on_CP[:, p], always_C, document_P[p]) for p in (first_P, ~first_P))
    said_first, said_second = said.rows(first_P), said.rows(~first_P)
    orders = list(permutations(first.document_P, PERMUTATIONS, seed + 1))

    def world(r: int) -> tuple[Said, Said]:
        return said_first.rows(orders[r]), exchanged(said_first, first.document_P, seed + 1 + r)

    statistics_RCS = np.empty((PERMUTATIONS, len(contexts), len(SUMS)))
    z_of_world: list[Floats] = []
    for r in range(PERMUTATIONS):
        z_CV = first.z(*world(r))
        statistics_RCS[r] = statistics(z_CV)
        if r < worlds:
            z_of_world.append(z_CV)
        note(1)
    null = null_of(statistics_RCS)
    test_orders_RP = np.array(list(permutations(second.document_P, TEST_PERMUTATIONS, seed + 3)))

    def verified(candidates: list[Candidate], said: Said, said_everywhere: Said) -> list[Verified]:
        return verify(second, candidates, said, said_everywhere, test_orders_RP, settings)

    z_CV = first.z(said_first, said_first)
    candidates = candidates_of(first, z_CV, null, said_first, said_first, settings.smallest)
    entries = verified(candidates, said_second, said_second)
    chance = []
    for r, order_P in enumerate(permutations(second.document_P, worlds, seed + 2)):
        candidates = candidates_of(first, z_of_world[r], null, *world(r), settings.smallest)
        unrelated = said_second.rows(order_P)
        listed = verified(candidates, unrelated, exchanged(unrelated, second.document_P, seed + r))
        chance.append(sum(one.verified for one in listed))
    return Outcome(contexts, first_P, entries, float(np.mean(chance)) if chance else 0.0)


def candidates_of(
    half: Half, z_CV: Floats, null: Null, said: Said, said_everywhere: Said, smallest: float
) -> list[Candidate]:
    """At most CANDIDATES candidates, and everywhere.

    Of contexts that say the same, one leads that is clear and strong: a context that holds in many places may be beyond
    chance by far because it holds where several things differ. What one model says more in some context it says more
    on average, too: everywhere comes last, is looked for outside of the clear contexts, and without the words of any
    other candidate.

    Args:
        said_everywhere: see `Half.z`.
        smallest: a context is clear when its clearness (`telling`) is larger.
    """
    standardised_C = null.standardised(statistics(z_CV))
    beyond = np.flatnonzero(null.p(standardised_C) <= DISCOVERY_P).tolist()
    contexts = [c for c in beyond if not half.always_C[c]]
    words, clearness = {}, {}
    for c in contexts:
        words[c], clearness[c] = telling(z_CV[c], said, half.on(c))
    # Gap times strength: by the gap alone the luck of few places would lead, by the strength alone what holds in many.
    # Ties go to the simpler kind of context, which costs nothing: contexts come in that order.
    contexts.sort(key=lambda c: -max(0.0, clearness[c]) * standardised_C[c])
    found: list[Candidate] = []
    for c in contexts:
        top = top_words(z_CV[c])
        leading = next((one for one in found if _say_the_same(c, top, one, half.on_CP)), None)
        if leading:
            leading.same.append(c)
        elif top and len(found) < CANDIDATES:
            found.append(Candidate(c, float(standardised_C[c]), top, words[c]))
    clear = [one.context for one in found if clearness[one.context] > smallest]
    outside_P = np.asarray(half.on_CP[clear].sum(axis=0))[0] == 0
    if outside_P.mean() < OUTSIDE:
        outside_P[:] = True
    for c in (c for c in beyond if half.always_C[c]):
        z_V = everywhere_z(said_everywhere.rows(outside_P))
        z_V[[w for one in found for side in SIDES for w in one.words[side]]] = 0
        strength = null.standardised(statistics(z_V[None]))[c]
        if null.p(np.array([strength]))[0] <= DISCOVERY_P:
            found.append(Candidate(c, float(strength), top_words(z_V), telling(z_V, said_everywhere, half.on(c))[0]))
    return found


def _say_the_same(context: int, top: list[int], other: Candidate, on_CP: sparse.csr_matrix) -> bool:
    common = len(set(top) & set(other.top))
    if common >= SAME_WORDS or (common and common >= SAME_SHARE * min(len(top), len(other.top))):
        return True
    on, on_other = on_CP[context], on_CP[other.context]
    both = float(on.multiply(on_other).sum())
    return both >= SAME_PLACES / (2 if common else 1) * (on.nnz + on_other.nnz - both)


def top_words(z_V: Floats, count: int = SUMS[-1]) -> list[int]:
    """The words of the largest |z|, strongest first: w where A says it more, -1 - w where B does."""
    best = np.argsort(-np.abs(z_V), kind="stable")[:count].tolist()
    return [w if z_V[w] > 0 else -1 - w for i, w in enumerate(best) if abs(z_V[w]) >= (_LEAST_Z if i else 1e-9)]


def telling(z_V: Floats, said: Said, on_P: Bools) -> tuple[dict[str, list[int]], float]:
    """(by side, the words by which a context tells the models apart best; its clearness).

    A word that is said elsewhere all the time hides the others, and looks better on the half that it was chosen on than
    it is. So the words come from those that are rare elsewhere, unless all words tell the models apart much better.

    The clearness is the lower end of the larger gap of either side's words. Places are taken for independent and the
    interval is wide: of few places a large gap is soon there by luck.
    """
    pool = top_words(z_V, 4 * POOL)
    columns = {side: said.by_side[side][:, [w if w >= 0 else -1 - w for w in pool]].toarray() for side in SIDES}
    if on_P.all():  # everywhere has no elsewhere: there the model that says a word less shows how common it is
        common_W = np.min([columns[side].mean(axis=0) for side in SIDES], axis=0)
    else:
        common_W = np.mean([columns[side][~on_P].mean(axis=0) for side in SIDES], axis=0)
    rare = np.flatnonzero(common_W <= COMMON)[:POOL].tolist()
    chosen, low = {}, -1.0
    for side in SIDES:
        of_side = [i for i, w in enumerate(pool) if (w >= 0) == (side == "a")]
        pools = ([i for i in rare if i in of_side], [i for i in range(min(SUMS[-1], len(pool))) if i in of_side])
        of_rare, of_all = (_best(columns[side], columns[OTHER[side]], which, on_P) for which in pools)
        best = of_all if of_all.t > MUCH * of_rare.t else of_rare
        chosen[side] = [pool[i] if side == "a" else -1 - pool[i] for i in best.columns]
        low = max(low, best.gap - CLEAR * best.error)
    return chosen, low


class _Best(NamedTuple):
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


def verify(
    half: Half,
    candidates: list[Candidate],
    said: Said,
    said_everywhere: Said,
    orders_RP: Longs,
    settings: ContrastSettings,
) -> list[Verified]:
    """The candidates by what the second half says, verified ones first; `said_everywhere`: see `Half.z`."""
    measured: list[tuple[Candidate, dict[str, Gap], float]] = []
    for one in candidates:
        said_there, on_P = said_everywhere if half.always_C[one.context] else said, half.on(one.context)
        score_of = {
            side: any_of(said_there, words, side) - any_of(said_there, words, OTHER[side])
            for side, words in one.words.items()
            if words
        }
        gaps = {side: gap_of(score_P, on_P, half.document_P) for side, score_P in score_of.items()}
        p_of = {side: gap.p_above(settings.smallest) for side, gap in gaps.items()}
        for side, p in p_of.items():
            if len(gaps) * p <= settings.rate:  # else the dearer test cannot change the answer
                permuted = permuted_p(score_of[side], on_P, half.document_P, orders_RP, settings.seed + 3)
                p_of[side] = max(p, permuted)
        # Either model's words may show it: two chances.
        measured.append((one, gaps, min([1.0, *(len(gaps) * p for p in p_of.values())])))
    weight_N = np.array([one.standardised**2 for one in candidates])
    verified_N = rejected(np.array([p for _, _, p in measured]), settings.rate, weight_N)
    entries = [
        Verified(one, gaps, p, bool(verified))
        for (one, gaps, p), verified in zip(measured, verified_N, strict=True)
        if gaps
    ]
    return sorted(entries, key=lambda one: (not one.verified, -one.effect.low()))


def any_of(said: Said, words: list[int], side: str) -> Floats:
    """(P,) share of the draws in which a model says any of the words; of several draws, the largest share of a word."""
    return np.asarray(said.by_side[side][:, words].max(axis=1).todense(), np.float64)[:, 0]
