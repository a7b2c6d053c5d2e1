"""What one model's activations alone say: shared features read through one of their two encoders, and random
directions.

How much of a shared feature that was read from one model the other model's activations explain, is what a concept of
both models would show in an exclusive partition: the scale that the exclusive features' own figures are held against
(verdict.py). What a direction shows that nobody chose is the control beside it.

Legend: N pairs of the sample, D width of one model, F features, R readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audits.judging import EXTREME_NORM
from modeldiff.features.codes import CodeSample
from modeldiff.features.rows import activations_of
from modeldiff.sides import SIDES
from modeldiff.threads import prefetched
from modeldiff.workspace.activations import ActivationStore

REFERENCES = 256
"""Shared features that are read from one model alone, at most."""
DIRECTIONS = 64
"""Random directions of each model."""
SEED = 0
"""Of the random directions."""


@dataclass(frozen=True)
class Readers:
    """Encoders on one side, as if each belonged to a feature of that model alone."""

    w_RD: torch.Tensor
    """For activations in normalised units, the bias left open: it follows from how often the reader fires."""
    fires_R: NDArray[np.int64]
    """Pairs of the sample on which each fires."""


def reference_features(crosscoder: Crosscoder, sample: CodeSample, least_firings: int) -> NDArray[np.int64]:
    """Up to 256 shared features that neither model dominates, spread evenly over those that fire often enough."""
    shared = crosscoder.slices["shared"]
    relative = crosscoder.relative_norm().detach().cpu().numpy()
    fits = (np.abs(relative - 0.5) <= EXTREME_NORM - 0.5) & (firings(sample) >= least_firings)
    candidates = shared.start + np.flatnonzero(fits[shared])
    if len(candidates) <= REFERENCES:
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, REFERENCES).round().astype(np.int64)]


def firings(sample: CodeSample) -> NDArray[np.int64]:
    """(F,) pairs of the sample on which each feature fires."""
    return np.bincount(sample.codes_NF.indices, minlength=sample.codes_NF.shape[1])


def median_firings(sample: CodeSample) -> int:
    """Of the features that fire at all; 0 when none does."""
    fires_F = firings(sample)
    return int(np.median(fires_F[fires_F > 0])) if fires_F.any() else 0


def shared_readers(crosscoder: Crosscoder, sample: CodeSample, reference_R: NDArray[np.int64], side: str) -> Readers:
    """These shared features' encoders on one side; each fires as often as the feature does."""
    w_enc = _encoders(crosscoder, side)
    w_RD = w_enc[torch.from_numpy(reference_R - crosscoder.sees(side).start).to(w_enc.device)]
    return Readers(w_RD, firings(sample)[reference_R])


def random_readers(crosscoder: Crosscoder, store: ActivationStore, sample: CodeSample, side: str) -> Readers:
    """Differences of 64 random pairs of activations: directions as common as the model's own variance makes them.

    Their covariance is twice that of the activations. Each is as long as the median encoder and fires as often as the
    median feature that is alive.
    """
    w_enc = _encoders(crosscoder, side)
    random = np.random.default_rng((SEED, SIDES.index(side)))
    count = min(DIRECTIONS, len(sample.rows_N) // 2)
    order_N = random.permutation(len(sample.rows_N))[: 2 * count]
    places = np.sort(order_N)
    found = [x_ND.float() for _, x_ND in activations_of(store, side, sample.rows_N[places])]
    x_ND = torch.cat([w_enc.new_zeros(0, w_enc.shape[1], device="cpu"), *found])
    one, other = np.searchsorted(places, order_N).reshape(2, count)
    w_RD = x_ND[torch.from_numpy(one)] - x_ND[torch.from_numpy(other)]
    norm_F = w_enc.norm(dim=1)
    length = float(norm_F[norm_F > 0].median()) if bool((norm_F > 0).any()) else 1.0
    w_RD *= length / w_RD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return Readers(w_RD.to(w_enc.device), np.full(count, median_firings(sample)))


def read_alone(
    crosscoder: Crosscoder,
    store: ActivationStore,
    sample: CodeSample,
    readers: Readers,
    side: str,
    advance: Callable[[float], None] = lambda _: None,
) -> sparse.csr_matrix:
    """(N, R) float32: activations of the readers.

    Like an exclusive feature's, they start at the selection's threshold.

    Args:
        advance: is told of pairs that were read.
    """
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
            kept = self._pre >= self._bar
            self._place, self._pre = self._place[kept], self._pre[kept]

    def fired(self, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(numbers of the pairs on which it fires, values: the next one below these is brought to the threshold)."""
        # What fires on all pairs leaves out the smallest.
        bar = self._pre.min()
        above = self._pre > bar
        return self._place[above], self._pre[above] - bar + np.float32(threshold)


def _encoders(crosscoder: Crosscoder, side: str) -> torch.Tensor:
    return crosscoder.encoder(side).detach()
