"""Evidence that a feature is in one model alone: its predictability from either model, with controls.

A feature that only A has should be explained by A's activations and not by B's (a sparse feature is never fully linear
in either, so both sides are measured). The controls are read from one model's activations alone, as if each belonged to
an exclusive feature: shared features, through one of their two encoders, which show what a concept of both models looks
like in an exclusive partition (the scale of linear/verdict.py); and differences of two activations, directions that
nobody chose. Each is measured once more in permuted pairs.

Legend: N pairs of the sample, D width of one model, F features, R directions read from one model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress, say
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audits.judging import EXTREME_NORM
from modeldiff.features.codes import CodeSample
from modeldiff.features.predictability import activations_of, firings, predictability
from modeldiff.linear.verdict import Scale, ratios, scale_of, verdicts
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


@dataclass(frozen=True)
class Readings:
    """(R,) held-out R² of what was read from one model alone: from that model's activations, from the other one's, and
    from the other one's in permuted pairs; NaN where it fires too rarely."""

    own: NDArray[np.float32]
    other: NDArray[np.float32]
    null: NDArray[np.float32]


@dataclass(frozen=True)
class Baseline:
    """What differences of two activations of one model show, read as if each were a feature of it alone.

    An exclusive feature with the same figures says no more than that the two models' activations differ.
    """

    directions: int
    """That were measured; the others fire too rarely."""
    own: float | None
    """Medians of R² from this model, from the other one, and from that in permuted pairs; None: none was measured."""
    other: float | None
    null: float | None
    ratio_low: float | None
    """5 %, 50 % and 95 % of the ratios other / own, over those that can be read from this model; None: none can."""
    ratio_median: float | None
    ratio_high: float | None
    verdicts: dict[str, int]
    """How many of them would be called what."""


def baseline_of(readings: Readings, scale: Scale) -> Baseline:
    """What one side's differences show, held against that side's scale."""
    values_3R = np.stack([readings.own, readings.other, readings.null]).astype(np.float64)
    own, other, null = values_3R[:, ~np.isnan(values_3R).any(axis=0)]
    called = np.unique(verdicts(own, other, scale), return_counts=True)
    ratio = ratios(own, other)

    def quantile(values: NDArray[np.float64], share: float = 0.5) -> float | None:
        return float(np.quantile(values, share)) if len(values) else None

    return Baseline(
        directions=len(own),
        own=quantile(own),
        other=quantile(other),
        null=quantile(null),
        ratio_low=quantile(ratio, 0.05),
        ratio_median=quantile(ratio),
        ratio_high=quantile(ratio, 0.95),
        verdicts={str(name): int(count) for name, count in zip(*called, strict=True)},
    )


@dataclass(frozen=True)
class Evidence:
    """Held-out R², by the side "a" or "b" whose activations explain; NaN where a feature fires too rarely.

    Attributes:
        r2: (F,) of every feature; null: the same in permuted pairs.
        reference, difference: by the side that they are read from, shared features and differences of activations.
    """

    r2: dict[str, NDArray[np.float32]]
    null: dict[str, NDArray[np.float32]]
    reference: dict[str, Readings]
    difference: dict[str, Readings]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """To be stored: r2_a, r2_b, null_a, null_b, and reference_a_own, ... difference_b_null."""
        named = {f"{name}_{side}": getattr(self, name)[side] for name in ("r2", "null") for side in SIDES}
        for name in ("reference", "difference"):
            for side, readings in getattr(self, name).items():
                named |= {f"{name}_{side}_{one}": values for one, values in vars(readings).items()}
        return named

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Evidence:
        def readings(name: str) -> dict[str, Readings]:
            return {s: Readings(*(arrays[f"{name}_{s}_{one}"] for one in ("own", "other", "null"))) for s in SIDES}

        r2, null = ({side: arrays[f"{name}_{side}"] for side in SIDES} for name in ("r2", "null"))
        return cls(r2, null, readings("reference"), readings("difference"))

    def scales(self, crosscoder: Crosscoder) -> dict[str, Scale]:
        """By side, what the ratios of its features are held against. The null is that of its exclusive features."""
        return {
            side: scale_of(one.own, one.other, self.null[OTHER[side]][crosscoder.slices[EXCLUSIVE[side]]])
            for side, one in self.reference.items()
        }


def evidence_of(
    crosscoder: Crosscoder, store: ActivationStore, sample: CodeSample, stretches: Stretches, device: torch.device
) -> Evidence:
    """All regressions in one pass over the sample for each side (more, if the sums of all do not fit into memory); the
    stretches say what is fitted on, and what is held out."""
    n, n_features = sample.codes_NF.shape
    reference_R = reference_features(crosscoder, sample)
    readers = {
        side: (
            reference_readers(crosscoder, sample, reference_R, side),
            difference_readers(crosscoder, store, sample, side),
        )
        for side in SIDES
    }
    differences = sum(len(readers[side][1].w_RD) for side in SIDES)
    say(
        f"predictability: {n:,} pairs, widths {store.widths[0]:,} and {store.widths[1]:,}; {n_features:,} features, "
        f"{len(SIDES) * len(reference_R):,} shared ones read from one model, {differences:,} differences of "
        "activations, and all these again in permuted pairs"
    )
    with progress("features: read from one model alone", len(SIDES) * n, "pairs") as bar:

        def read(side: str) -> sparse.csr_matrix:
            w_RD = torch.cat([one.w_RD for one in readers[side]])
            fires_R = np.concatenate([one.fires_R for one in readers[side]])
            return read_alone(crosscoder, store, sample, Readers(w_RD, fires_R), side, bar.advance)

        targets = sparse.hstack([sample.codes_NF, *by_side(read).values()], format="csr")
    # Far apart: neighbouring pairs are of one text.
    permuted = targets[(np.arange(n) + n // 2) % max(1, n)]
    both = CodeSample(sparse.hstack([targets, permuted], format="csr"), sample.rows_N)
    sizes = [n_features, *(len(one.w_RD) for side in SIDES for one in readers[side])]
    groups = {
        side: np.split(r2, np.cumsum([*sizes, *sizes])[:-1])
        for side, r2 in predictability(store, both, stretches, device).items()
    }

    def readings(kind: int) -> dict[str, Readings]:
        found = {}
        for number, side in enumerate(SIDES):
            group, other = 1 + 2 * number + kind, groups[OTHER[side]]
            found[side] = Readings(groups[side][group], other[group], other[len(sizes) + group])
        return found

    r2, null = ({side: groups[side][first] for side in SIDES} for first in (0, len(sizes)))
    return Evidence(r2, null, readings(0), readings(1))


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
