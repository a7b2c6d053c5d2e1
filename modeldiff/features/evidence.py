"""Evidence that a feature is in one model alone: its predictability from either model, with controls.

A feature that only A has should be explained by A's activations and not by B's (a sparse feature is never fully linear
in either, so both sides are measured). The controls are read from one model's activations alone, as if each belonged to
an exclusive feature: shared features, through one of their two encoders, which show what a concept of both models looks
like in an exclusive partition (the scale of linear/verdict.py); and differences of two activations, directions that
nobody chose. Each is measured once more in permuted pairs.

Legend: N pairs of the sample, D width of one model, F features, R directions read from one model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.catalogue.stored import Arrays
from modeldiff.console import progress, say
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audits.judging import EXTREME_NORM
from modeldiff.features.codes import CodeSample
from modeldiff.features.predictability import activations_of, firings, predictability
from modeldiff.linear.verdict import Scale, scale_of
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES
from modeldiff.splits import Stretches
from modeldiff.threads import by_side, prefetched
from modeldiff.workspace.activations import ActivationStore

REFERENCES = 256
"""Shared features that are read from one model alone, at most."""
REFERENCE_FIRINGS = 50
"""A shared feature that fires less often in the sample is no reference: its R² would be noise."""
DIFFERENCES = 64
"""Differences of two activations of each model."""
_SEED = 0


def evidence_of(
    crosscoder: Crosscoder, store: ActivationStore, sample: CodeSample, stretches: Stretches, device: torch.device
) -> Arrays:
    """Held-out R² of all features and controls; NaN where one fires too rarely. It takes one pass over the sample for
    each side, more if the sums of all regressions do not fit into memory. `stretches`: the parts fitted on and held
    out.

    Returns:
        r2_a, r2_b (F,): of the features, from each model's activations; null_a, null_b: the same in permuted pairs.
        For shared features (reference) and differences of activations (difference) that are read from model X,
        reference_X_own, ... difference_X_null (R,): from X, from the other model, and from that in permuted pairs.
    """
    n, n_features = sample.codes_NF.shape
    reference_R = reference_features(crosscoder, sample)
    readers = {}
    for side in SIDES:
        readers[f"reference_{side}"] = reference_readers(crosscoder, sample, reference_R, side)
        readers[f"difference_{side}"] = difference_readers(crosscoder, store, sample, side)
    differences = sum(len(readers[f"difference_{side}"].w_RD) for side in SIDES)
    say(
        f"predictability: {n:,} pairs, widths {store.widths[0]:,} and {store.widths[1]:,}; {n_features:,} features, "
        f"{len(SIDES) * len(reference_R):,} shared ones read from one model, {differences:,} differences of "
        "activations, and all these again in permuted pairs"
    )
    with progress("features: read from one model alone", len(SIDES) * n, "pairs") as bar:

        def read(side: str) -> sparse.csr_matrix:
            both = [readers[f"{kind}_{side}"] for kind in ("reference", "difference")]
            joined = Readers(torch.cat([one.w_RD for one in both]), np.concatenate([one.fires_R for one in both]))
            return read_alone(crosscoder, store, sample, joined, side, bar.advance)

        targets = sparse.hstack([sample.codes_NF, *by_side(read).values()], format="csr")
    # Far apart: neighbouring pairs are of one text.
    permuted = targets[(np.arange(n) + n // 2) % max(1, n)]
    twice = CodeSample(sparse.hstack([targets, permuted], format="csr"), sample.rows_N)
    borders = np.cumsum([n_features, *(len(one.w_RD) for one in readers.values())])[:-1]
    r2, null = dict[str, Arrays](), dict[str, Arrays]()
    for side, values in predictability(store, twice, stretches, device).items():
        r2[side], null[side] = (
            dict(zip(["features", *readers], np.split(half, borders), strict=True)) for half in np.split(values, 2)
        )
    arrays: Arrays = {}
    for side, other in OTHER.items():
        arrays |= {f"r2_{side}": r2[side]["features"], f"null_{side}": null[side]["features"]}
        for name in (f"reference_{side}", f"difference_{side}"):
            found = {"own": r2[side][name], "other": r2[other][name], "null": null[other][name]}
            arrays |= {f"{name}_{what}": values for what, values in found.items()}
    return arrays


def scales_of(evidence: Arrays, crosscoder: Crosscoder) -> dict[str, Scale]:
    """By side, what the ratios of its features are held against. The null is that of its exclusive features."""
    return {
        side: scale_of(
            evidence[f"reference_{side}_own"],
            evidence[f"reference_{side}_other"],
            evidence[f"null_{other}"][crosscoder.slices[EXCLUSIVE[side]]],
        )
        for side, other in OTHER.items()
    }


@dataclass(frozen=True)
class Readers:
    """Encoders on one side, as if each belonged to a feature of that model alone."""

    w_RD: torch.Tensor
    """For activations in normalised units, the bias left open: it follows from how often the reader fires."""
    fires_R: NDArray[np.int64]
    """Pairs of the sample on which each fires."""


def reference_features(crosscoder: Crosscoder, sample: CodeSample) -> NDArray[np.int64]:
    """(R,) up to 256 shared features that neither model dominates, spread evenly over those that fire often enough."""
    shared = crosscoder.slices["shared"]
    relative = crosscoder.relative_norm().detach().cpu().numpy()
    fits = (np.abs(relative - 0.5) <= EXTREME_NORM - 0.5) & (firings(sample.codes_NF) >= REFERENCE_FIRINGS)
    candidates = shared.start + np.flatnonzero(fits[shared])
    if len(candidates) <= REFERENCES:
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, REFERENCES).round().astype(np.int64)]


def reference_readers(crosscoder: Crosscoder, sample: CodeSample, reference_R: NDArray[np.int64], side: str) -> Readers:
    """The references' encoders on one side; each fires as often as the feature does."""
    w_enc = crosscoder.encoder(side).detach()
    w_RD = w_enc[torch.from_numpy(reference_R - crosscoder.sees(side).start).to(w_enc.device)]
    return Readers(w_RD, firings(sample.codes_NF)[reference_R])


def difference_readers(crosscoder: Crosscoder, store: ActivationStore, sample: CodeSample, side: str) -> Readers:
    """Differences of 64 pairs of activations, drawn at random: directions as common as the model's own variance makes
    them (their covariance is twice that of the activations). Each is as long as the median encoder and fires as often
    as the median feature that is alive."""
    w_enc = crosscoder.encoder(side).detach()
    random = np.random.default_rng((_SEED, SIDES.index(side)))
    count = min(DIFFERENCES, len(sample.rows_N) // 2)
    order_N = random.permutation(len(sample.rows_N))[: 2 * count]
    places = np.sort(order_N)
    found = [x_ND.float() for _, x_ND in activations_of(store, side, sample.rows_N[places])]
    x_ND = torch.cat([w_enc.new_zeros(0, w_enc.shape[1], device="cpu"), *found])
    one, other = np.searchsorted(places, order_N).reshape(2, count)
    w_RD = x_ND[torch.from_numpy(one)] - x_ND[torch.from_numpy(other)]
    norm_F = w_enc.norm(dim=1)
    length = float(norm_F[norm_F > 0].median()) if bool((norm_F > 0).any()) else 1.0
    w_RD *= length / w_RD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    fires_F = firings(sample.codes_NF)
    median = int(np.median(fires_F[fires_F > 0])) if fires_F.any() else 0
    return Readers(w_RD.to(w_enc.device), np.full(count, median))


def read_alone(
    crosscoder: Crosscoder,
    store: ActivationStore,
    sample: CodeSample,
    readers: Readers,
    side: str,
    advance: Callable[[float], None] = lambda _: None,
) -> sparse.csr_matrix:
    """(N, R) float32: activations of the readers. Like an exclusive feature's, they start at the selection's threshold.
    `advance` is told of pairs that were read."""
    n, r = len(sample.rows_N), len(readers.w_RD)
    if not n or not r:
        return sparse.csr_matrix((n, r), dtype=np.float32)
    w_RD, bias_R = crosscoder.config.raw_encoder(side, readers.w_RD)
    found = [_Largest(int(fires)) for fires in readers.fires_R]

    def read(some: tuple[slice, torch.Tensor]) -> NDArray[np.float32]:
        return (w_RD @ some[1].to(w_RD.device).float().T).add_(bias_R[:, None]).cpu().numpy()

    for (rows, x_nD), pre_Rn in prefetched(read, activations_of(store, side, sample.rows_N)):
        for largest, pre_n in zip(found, pre_Rn, strict=True):
            largest.add(pre_n, rows.start)
        advance(len(x_nD))
    fired, values = zip(*(largest.fired(crosscoder.config.threshold) for largest in found), strict=True)
    starts = np.cumsum([0, *map(len, fired)])
    return sparse.csc_matrix((np.concatenate(values), np.concatenate(fired), starts), shape=(n, r)).tocsr()


class _Largest:
    """One reader's largest pre-activations, as many as it fires and the next one, while the pairs come by."""

    def __init__(self, fires: int) -> None:
        self._most = fires + 1
        self._bar = np.float32(-np.inf)
        self._place = np.zeros(0, np.int64)
        self._pre = np.zeros(0, np.float32)

    def add(self, pre_n: NDArray[np.float32], first: int) -> None:
        """Take in pairs, of which the first one has this number."""
        above = np.flatnonzero(pre_n > self._bar)
        self._place = np.concatenate([self._place, first + above])
        self._pre = np.concatenate([self._pre, pre_n[above]])
        surplus = len(self._pre) - self._most
        if surplus > 0:
            self._bar = np.partition(self._pre, surplus)[surplus]
            largest = self._pre >= self._bar
            self._place, self._pre = self._place[largest], self._pre[largest]

    def fired(self, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(numbers of the pairs on which it fires, values: the next one below these is brought to the threshold)."""
        # What fires on all pairs leaves out the smallest.
        bar = self._pre.min()
        above = self._pre > bar
        return self._place[above], self._pre[above] - bar + np.float32(threshold)
