"""The statistics of contrasts, on arrays alone.

For a context c and a word w, with D what A says of w at a place minus what B says (shares of the draws):

    d = mean of D where c holds - mean of D elsewhere            z = d / its standard error

What the models do differently everywhere is in both means and drops out; what the text makes both models do drops out
of D. A word counts for a model only where that model says it more where the context holds than it does elsewhere, and
more than the other model does there: what is a habit elsewhere is no difference of the places without it.

A context has three statistics, the sums of its 1, 3 and 8 largest |z|: a difference may be one word or a way of
speaking. Their null: documents exchange their continuations, all of a document together, so that places of one document
need not be independent. Each sum is standardised by its own null, and the largest counts.

Legend: P places, K documents, C contexts, V words, S sums, R permutations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from modeldiff.contrast.words import Said

Floats = NDArray[np.floating]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Counts of the largest |z| that are added up.
SUMS = (1, 3, 8)
# Variances are shrunk towards that over all places, which counts as much as so many places.
_PRIOR = 8.0


def halves(document_P: Longs, seed: int) -> Bools:
    """(P,) True for the places of one half of the documents, drawn at random: the half that discovers."""
    documents = np.unique(document_P)
    first = np.random.default_rng(seed).permutation(documents)[: (len(documents) + 1) // 2]
    return np.isin(document_P, first)


def permutations(document_P: Longs, count: int, seed: int) -> Iterator[Longs]:
    """Orders (P,) of the places in which whole documents, whose places stand together, have changed their places with
    others of as many places."""
    rng = np.random.default_rng(seed)
    _, start_K, size_K = np.unique(document_P, return_index=True, return_counts=True)
    groups = [start_K[size_K == size][:, None] + np.arange(size) for size in np.unique(size_K)]
    for _ in range(count):
        order_P = np.empty(len(document_P), np.int64)
        for rows in groups:
            order_P[rows] = rows[rng.permutation(len(rows))]
        yield order_P


def context_z(on_CP: sparse.csr_matrix, said: Said) -> Floats:
    """(C, V) z of every context and word, `on_CP` being 1 where a context holds; 0 where the word does not count."""
    places = on_CP.shape[1]
    on_C1 = np.asarray(on_CP.sum(axis=1), np.float32)
    off_C1 = places - on_C1
    a, b = said.by_side["a"], said.by_side["b"]
    parts = (a, b, (a - b).power(2))
    total_a, total_b, total_square = totals = [np.asarray(part.sum(axis=0), np.float32) for part in parts]
    variance_V = total_square / places - ((total_a - total_b) / places) ** 2

    def error_squared(square_CV: Floats, difference_CV: Floats, places_C1: Floats) -> Floats:
        """Variance of D over its number of places, both shrunk; from the means of D squared and of D."""
        shrunk = square_CV - difference_CV**2 + _PRIOR / places_C1 * variance_V
        return shrunk / (places_C1 + _PRIOR)

    on = [(on_CP @ part).toarray() for part in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        a_off, b_off, square_off = ((total - sum_CV) / off_C1 for total, sum_CV in zip(totals, on, strict=True))
        for sum_CV in on:
            sum_CV /= on_C1
        a_on, b_on, square_on = on
        variance = error_squared(square_on, a_on - b_on, on_C1)
        variance += error_squared(square_off, a_off - b_off, off_C1)
        z_CV = (a_on - b_on - a_off + b_off) / np.sqrt(variance)
    counts = np.where(z_CV > 0, a_on > np.maximum(a_off, b_on), b_on > np.maximum(b_off, a_on)) & np.isfinite(z_CV)
    return np.where(counts, z_CV, np.float32(0))


def everywhere_z(said: Said) -> Floats:
    """(V,) z of what the models say differently whatever the text."""
    difference = said.difference
    places = difference.shape[0]
    mean_V = np.asarray(difference.sum(axis=0), np.float64)[0] / places
    square_V = np.asarray(difference.multiply(difference).sum(axis=0), np.float64)[0] / places
    with np.errstate(divide="ignore", invalid="ignore"):
        z_V = mean_V / np.sqrt((square_V - mean_V**2) / places)
    return np.where(np.isfinite(z_V), z_V, 0.0)


def statistics(z_CV: Floats) -> Floats:
    """(C, S) the sums of the largest |z|."""
    most = min(SUMS[-1], z_CV.shape[1])
    largest = -np.sort(-np.partition(np.abs(z_CV), -most, axis=1)[:, -most:], axis=1) if most else np.abs(z_CV)
    return np.stack([largest[:, :count].sum(axis=1) for count in SUMS], axis=1)


def exchanged(said: Said, document_P: Longs, seed: int) -> Said:
    """The two models change their parts in about half of the documents, drawn at random."""
    documents, at_P = np.unique(document_P, return_inverse=True)
    swap_K = np.random.default_rng(seed).integers(0, 2, len(documents)).astype(np.float32)
    swap, stay = sparse.diags(swap_K[at_P]), sparse.diags(1 - swap_K[at_P])
    both = zip(said.by_draw["a"], said.by_draw["b"], strict=True)
    changed = [((stay @ a + swap @ b).tocsr(), (stay @ b + swap @ a).tocsr()) for a, b in both]
    return Said(said.names, {"a": [a for a, _ in changed], "b": [b for _, b in changed]})


@dataclass(frozen=True)
class Null:
    """What the contexts' statistics are where continuations and contexts have nothing to do with each other."""

    mean_CS: Floats
    spread_CS: Floats
    pooled: Floats
    """Standardised statistics of all contexts and permutations, ascending."""

    def standardised(self, statistics_CS: Floats) -> Floats:
        """(C,) the largest of a context's statistics, in standard deviations of its own null above its mean."""
        return ((statistics_CS - self.mean_CS) / self.spread_CS).max(axis=1)

    def p(self, standardised_C: Floats) -> Floats:
        """(C,) share of the pooled null that is as large."""
        above = len(self.pooled) - np.searchsorted(self.pooled, standardised_C, side="left")
        return (1 + above) / (1 + len(self.pooled))


def null_of(statistics_RCS: Floats) -> Null:
    mean_CS = statistics_RCS.mean(axis=0)
    # Half of it is the average spread: of few permutations some spread is small by luck.
    spread = statistics_RCS.std(axis=0, ddof=1)
    spread_CS = np.sqrt((spread**2 + spread.mean(axis=0) ** 2) / 2) + 1e-12
    return Null(mean_CS, spread_CS, np.sort(((statistics_RCS - mean_CS) / spread_CS).max(axis=2).ravel()))


def rejected(p_N: Floats, rate: float, weight_N: Floats) -> Bools:
    """(N,) which hypotheses Benjamini and Hochberg's procedure rejects at this false discovery rate.

    weight_N: how promising each was before its p-value was known (Genovese, Roeder and Wasserman 2006): p-values are
    divided by the weights, whose mean is made 1. The rate holds whatever they are.
    """
    if not len(p_N):
        return np.zeros(0, bool)
    adjusted_N = stats.false_discovery_control(np.minimum(1, p_N * weight_N.mean() / weight_N))
    return np.asarray(adjusted_N <= rate)


@dataclass(frozen=True)
class Gap:
    """A difference of rates, or of differences of rates, with its uncertainty over documents."""

    value: float
    error: float
    """Standard error: documents are independent, places of one are not."""
    freedom: float
    """Degrees of freedom: the smaller number of documents, less one."""

    def low(self) -> float:
        """Lower end of the two-sided 95 % interval, within what a difference of differences can be."""
        return max(-2.0, self.value - self.quantile() * self.error)

    def high(self) -> float:
        return min(2.0, self.value + self.quantile() * self.error)

    def p_above(self, least: float) -> float:
        """One-sided p-value of the hypothesis that the gap is at most `least`."""
        if self.error <= 0:
            return 1.0
        return float(stats.t.sf((self.value - least) / self.error, self.freedom))

    def quantile(self) -> float:
        """Errors from the value to an end of the interval."""
        return float(stats.t.ppf(0.975, self.freedom))


def gap_of(score_P: Floats, on_P: Bools, document_P: Longs) -> Gap:
    """Mean score (such as how much more A says any of some words than B) where a context holds, or that minus the mean
    elsewhere: whichever has the smaller lower end, for a difference is to show in both."""
    on, variance_on, documents_on = _mean(score_P[on_P], document_P[on_P])
    here = Gap(on, float(np.sqrt(variance_on)), documents_on - 1)
    if on_P.all():
        return here
    off, variance_off, documents_off = _mean(score_P[~on_P], document_P[~on_P])
    more = Gap(on - off, float(np.sqrt(variance_on + variance_off)), min(documents_on, documents_off) - 1)
    return min(more, here, key=Gap.low)


def _mean(score_P: Floats, document_P: Longs) -> tuple[float, float, int]:
    """(mean, its variance over documents, number of documents)."""
    mean = float(score_P.mean())
    _, at_P = np.unique(document_P, return_inverse=True)
    sums_K = np.bincount(at_P, score_P - mean)
    documents = len(sums_K)
    if documents < 2:
        return mean, float("inf"), 2
    # A place's worth of the variance of a coin that never came up otherwise: rates of 0 and 1 are not certain.
    floor = 0.25 / len(score_P) ** 2
    return mean, float((sums_K**2).sum() / len(score_P) ** 2 * documents / (documents - 1)) + floor, documents


def permuted_p(score_P: Floats, on_P: Bools, document_P: Longs, orders_RP: NDArray[np.int64], seed: int) -> float:
    """One-sided p-value of `gap_of`, against worlds where contexts and scores have nothing to do with each other.

    The gap is divided by its error, so that scores that vary more where the context holds do not count for it (Chung
    and Romano 2013). Where the context holds everywhere, the models change their parts document by document instead.
    orders_RP: as `permutations` gives them.
    """
    _, at_P = np.unique(document_P, return_inverse=True)
    if on_P.all():
        sums_K = np.bincount(at_P, score_P)
        signs_RK = np.random.default_rng(seed).choice([-1.0, 1.0], (len(orders_RP), len(sums_K)))
        t_R = (signs_RK @ sums_K) / np.sqrt((sums_K**2).sum() + 1e-12)
        t = sums_K.sum() / np.sqrt((sums_K**2).sum() + 1e-12)
    else:
        t = float(_studentised(score_P[None], on_P, at_P)[0])
        t_R = _studentised(score_P[orders_RP], on_P, at_P)
    return float((1 + (t_R >= t - 1e-9).sum()) / (1 + len(t_R)))


def _studentised(score_RP: Floats, on_P: Bools, at_P: Longs) -> Floats:
    """(R,) the gap over its error, for scores in several orders."""
    (on_R, variance_on_R), (off_R, variance_off_R) = (_means(score_RP, part_P, at_P) for part_P in (on_P, ~on_P))
    return (on_R - off_R) / np.sqrt(variance_on_R + variance_off_R + 1e-12)


def _means(score_RP: Floats, part_P: Bools, at_P: Longs) -> tuple[Floats, Floats]:
    """(mean score of a part of the places, its variance over documents), each (R,)."""
    scores, places = score_RP[:, part_P], int(part_P.sum())
    at = (np.arange(places), at_P[part_P])
    document_PK = sparse.csr_matrix((np.ones(places), at), shape=(places, at_P.max() + 1))
    mean_R1 = scores.mean(axis=1, keepdims=True)
    sums_RK = np.asarray((scores - mean_R1) @ document_PK)
    return mean_R1[:, 0], (sums_RK**2).sum(axis=1) / places**2
