"""Predictability: how much of a feature's activation a linear map of one model's activations explains (held out).

A feature that only A has should be explained by A's activations and not by B's (a sparse feature is never fully linear
in either, so both sides are measured). Ridge regression in closed form, float64, for all features at once, from the
moments of one pass over a sample of the pairs.

Legend: N pairs, D width of one model, F features, G features of a block, R features or directions read from one model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress, say
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.sparse import Bags, bag_sum
from modeldiff.features.alone import (
    Readers,
    random_readers,
    read_alone,
    reference_features,
    shared_readers,
)
from modeldiff.features.codes import CodeSample
from modeldiff.features.controls import Control, control_of
from modeldiff.features.cost import Cost, block_targets
from modeldiff.features.rows import activations_of
from modeldiff.linear.ridge import Moments, held_out_r2
from modeldiff.linear.verdict import Scale, scale_of
from modeldiff.sides import OTHER, SIDES
from modeldiff.threads import by_side, prefetched
from modeldiff.workspace.activations import ActivationStore

HELD_OUT_EVERY = 5
"""Every 5th stretch of the sample is held out."""
MIN_FIRINGS = 5
"""Fewer firings than this in either part: R² would be a matter of luck, none is given."""
REFERENCE_FIRINGS = 50
"""A shared feature that fires less often in the sample is no reference: its R² would be noise."""
# Stretches are long enough that neighbouring tokens of one text rarely fall in different parts.
_MAX_STRETCH, _MIN_STRETCHES = 512, 20
# Pairs whose products are summed in float32 at once, and values of such sums.
_FLOAT32_ROWS = 4096


@dataclass(frozen=True)
class Readings:
    """Held-out R² of what was read from one model alone.

    Attributes:
        own, other, null: (R,) from that model's activations, from the other one's, and from the other one's in permuted
            pairs.
    """

    own: NDArray[np.float32]
    other: NDArray[np.float32]
    null: NDArray[np.float32]


_READINGS = ("alone", "random")


@dataclass(frozen=True)
class Evidence:
    """Held-out R², by the side "a" or "b" whose activations explain; NaN where a feature fires too rarely.

    Attributes:
        r2: (F,) of every feature.
        null: (F,) the same in permuted pairs.
        alone: by the side that they are read from, shared features.
        random: by the side that they are read from, random directions.
    """

    r2: dict[str, NDArray[np.float32]]
    null: dict[str, NDArray[np.float32]]
    alone: dict[str, Readings]
    random: dict[str, Readings]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """To be stored: r2_a, r2_b, null_a, null_b, and alone_a_own, alone_a_other, alone_a_null, ... random_b_null."""
        named = {f"{name}_{side}": values for name in ("r2", "null") for side, values in getattr(self, name).items()}
        for name in _READINGS:
            for side, readings in getattr(self, name).items():
                named |= {f"{name}_{side}_{one}": values for one, values in vars(readings).items()}
        return named

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Evidence:
        """The inverse of `arrays`."""

        def readings(name: str) -> dict[str, Readings]:
            return {s: Readings(*(arrays[f"{name}_{s}_{one}"] for one in ("own", "other", "null"))) for s in SIDES}

        return cls(
            r2={side: arrays[f"r2_{side}"] for side in SIDES},
            null={side: arrays[f"null_{side}"] for side in SIDES},
            alone=readings("alone"),
            random=readings("random"),
        )

    def scales(self, crosscoder: Crosscoder) -> dict[str, Scale]:
        """By side, what the ratios of its features are held against. The null is that of its exclusive features."""
        result = {}
        for side, partition in (("a", "A"), ("b", "B")):
            null_F = self.null[OTHER[side]][crosscoder.slices[partition]]
            result[side] = scale_of(self.alone[side].own, self.alone[side].other, null_F)
        return result

    def controls(self, crosscoder: Crosscoder) -> dict[str, Control]:
        """By side, what random directions of its activations show."""
        scales = self.scales(crosscoder)
        return {side: control_of(one.own, one.other, one.null, scales[side]) for side, one in self.random.items()}


def evidence_of(crosscoder: Crosscoder, store: ActivationStore, sample: CodeSample, device: torch.device) -> Evidence:
    """All regressions in one pass over the sample for each side (more, if the sums of all do not fit into memory)."""
    n = len(sample.rows_N)
    reference_R = reference_features(crosscoder, sample, REFERENCE_FIRINGS)
    readers = {
        "alone": {side: shared_readers(crosscoder, sample, reference_R, side) for side in SIDES},
        "random": {side: random_readers(crosscoder, store, sample, side) for side in SIDES},
    }
    for line in _cost(store, sample, readers).lines():
        say(line)
    with progress("features: read from one model alone", len(SIDES) * n, "pairs") as bar:

        def read(side: str) -> sparse.csr_matrix:
            both = [readers[name][side] for name in _READINGS]
            together = Readers(torch.cat([one.w_RD for one in both]), np.concatenate([one.fires_R for one in both]))
            return read_alone(crosscoder, store, sample, together, side, bar.advance)

        made = by_side(read)
    targets = sparse.hstack([sample.codes_NF, *made.values()], format="csr")
    # Far apart: neighbouring pairs are of one text.
    permuted = targets[(np.arange(n) + n // 2) % max(1, n)]
    r2 = predictability(store, CodeSample(sparse.hstack([targets, permuted], format="csr"), sample.rows_N), device)
    sizes = [sample.codes_NF.shape[1]] + [len(readers[name][side].w_RD) for side in SIDES for name in _READINGS]
    ends = np.cumsum([*sizes, *sizes])[:-1]
    parts = {side: np.split(values, ends) for side, values in r2.items()}

    def readings(name: str) -> dict[str, Readings]:
        found = {}
        for number, side in enumerate(SIDES):
            place = 1 + number * len(_READINGS) + _READINGS.index(name)
            other = parts[OTHER[side]]
            found[side] = Readings(parts[side][place], other[place], other[len(sizes) + place])
        return found

    return Evidence(
        r2={side: parts[side][0] for side in SIDES},
        null={side: parts[side][len(sizes)] for side in SIDES},
        alone=readings("alone"),
        random=readings("random"),
    )


def predictability(store: ActivationStore, sample: CodeSample, device: torch.device) -> dict[str, NDArray[np.float32]]:
    """Held-out R² of every feature from each model's activations.

    Returns:
        By side "a" and "b", (F,) float32: 1 - residual / total sum of squares on the held-out pairs, NaN where a
        feature fires too rarely. Below 0: worse than the held-out mean.
    """
    # mps has no float64.
    device = device if device.type == "cuda" else torch.device("cpu")
    held_N = held_out(len(sample.rows_N))
    blocks = _blocks(sample.codes_NF, block_targets(sample.codes_NF.shape[1], max(store.widths)))
    firings_F = _firings(sample.codes_NF, held_N)
    with progress("features: predictability", len(SIDES) * len(blocks) * len(sample.rows_N), "pairs") as bar:

        def of_side(side: str) -> NDArray[np.float32]:
            width, parts = store.info.sides[side].width, list[Moments]()
            r2 = []
            for codes_NG in blocks:
                # The sums of the inputs are those of the first block.
                inputs_known, targets = bool(parts), codes_NG.shape[1]
                parts = (
                    [part.for_targets(targets) for part in parts]
                    if inputs_known
                    else [Moments.empty(width, targets) for _ in range(2)]
                )
                for held, x_nD in _summed(store, side, sample.rows_N, codes_NG, parts, device):
                    if not inputs_known:
                        parts[held].add_inputs(x_nD)
                    bar.advance(len(x_nD))
                r2.append(held_out_r2(*parts).numpy())
            return np.where(firings_F >= MIN_FIRINGS, np.concatenate(r2), np.nan).astype(np.float32)

        return by_side(of_side)


def _blocks(codes_NF: sparse.csr_matrix, targets: int) -> list[sparse.csr_matrix]:
    """Some columns each."""
    if codes_NF.shape[1] <= targets:
        return [codes_NF]
    columns = codes_NF.tocsc()
    return [columns[:, start : start + targets].tocsr() for start in range(0, codes_NF.shape[1], targets)]


def _summed(
    store: ActivationStore,
    side: str,
    rows_N: NDArray[np.int64],
    codes_NG: sparse.csr_matrix,
    parts: list[Moments],
    device: torch.device,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Adds the targets' sums to the two parts, fitted and held out; gives (part, inputs about their mean, float64) of
    some thousand pairs at a time, while the next ones are being added."""
    mean_D = store.mean[side].to(device).double()
    held_N = held_out(len(rows_N))

    def add(some: tuple[slice, torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
        rows, x_ND = some
        done = []
        for held, part in enumerate(parts):
            places = np.flatnonzero(held_N[rows] == bool(held))
            for start in range(0, len(places), _FLOAT32_ROWS):
                chosen = places[start : start + _FLOAT32_ROWS]
                x_nD = x_ND[torch.from_numpy(chosen)].to(device).double().sub_(mean_D)
                add_targets(part, x_nD, codes_NG[rows.start + chosen])
                done.append((held, x_nD))
        return done

    for _, done in prefetched(add, activations_of(store, side, rows_N)):
        yield from done


def held_out(n: int) -> NDArray[np.bool_]:
    """(N,) True for the pairs of the sample that no regression is fitted on."""
    stretch = max(1, min(_MAX_STRETCH, n // _MIN_STRETCHES))
    return (np.arange(n) // stretch) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _cost(store: ActivationStore, sample: CodeSample, readers: Mapping[str, Mapping[str, Readers]]) -> Cost:
    """Of the pass over all targets, before anything is read."""
    alone, directions = (sum(len(one.w_RD) for one in readers[name].values()) for name in _READINGS)
    entries = sample.codes_NF.nnz + sum(int(r.fires_R.sum()) for both in readers.values() for r in both.values())
    features = sample.codes_NF.shape[1]
    targets = {
        "features": features,
        "shared ones read from one model": alone,
        "random directions": directions,
        "of all these again in permuted pairs": features + alone + directions,
    }
    return Cost(len(sample.rows_N), targets, 2 * entries, store.widths)


def add_targets(part: Moments, x_nD: torch.Tensor, f_nG: sparse.csr_matrix) -> None:
    """Take in some thousand pairs' targets, from the entries that are not 0.

    Their products with the inputs are summed in float32 over these pairs, in float64 from there on.

    Args:
        x_nD: inputs about their mean, float64, on any device; the part itself is on the CPU.
    """
    n_targets, device = f_nG.shape[1], x_nD.device
    columns = f_nG.tocsc()
    index_K, start_G1 = (torch.from_numpy(one.astype(np.int64)).to(device) for one in (columns.indices, columns.indptr))
    bag_K = torch.from_numpy(np.repeat(np.arange(n_targets), np.diff(columns.indptr))).to(device)
    weight_K = torch.from_numpy(columns.data.astype(np.float32, copy=False)).to(device)
    part.fx_GD += bag_sum(x_nD.float(), Bags(index_K, bag_K, start_G1), weight_K).cpu()
    f_K = f_nG.data.astype(np.float64)
    part.f_G += torch.from_numpy(np.bincount(f_nG.indices, f_K, n_targets))
    part.ff_G += torch.from_numpy(np.bincount(f_nG.indices, f_K * f_K, n_targets))


def _firings(codes_NG: sparse.csr_matrix, held_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(G,) firings in that part, training or held out, in which the feature fires less."""
    return np.minimum(*(np.bincount(codes_NG[m].indices, minlength=codes_NG.shape[1]) for m in (held_N, ~held_N)))
