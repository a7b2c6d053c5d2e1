"""Predictability: how much of a feature's activation a linear map of one model's activations explains (held out).

Ridge regression in closed form, float64, for all features at once, from the moments of one pass over a sample of the
pairs.

Legend: N pairs of the sample, n of some thousand, D width of one model, F features, G features of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.crosscoder.fast.sparse import Bags, bag_sum
from modeldiff.features.codes import CodeSample
from modeldiff.linear.ridge import Moments, held_out_r2
from modeldiff.sides import SIDES
from modeldiff.splits import Stretches
from modeldiff.threads import by_side, prefetched
from modeldiff.workspace.activations import ActivationStore, Block

MIN_FIRINGS = 5
"""Fewer firings than this in either part: R² would be a matter of luck, none is given."""
# Most memory that a block of targets may take for one model, by kind of device; (G, D) arrays of float64 that are there
# at once: sums of both parts, one part centred, the weights, and two products of these.
_BLOCK_BYTES, _BLOCK_ARRAYS = {"cpu": 2 << 30, "cuda": 4 << 30}, 6
# Most rows in memory at once, and rows in between that are read along with those that are wanted.
_CHUNK_ROWS, _GAP_ROWS = 16_384, 1024
# Pairs whose products are summed in float32 at once.
_FLOAT32_ROWS = 4096


def predictability(
    store: ActivationStore, sample: CodeSample, stretches: Stretches, device: torch.device
) -> dict[str, NDArray[np.float32]]:
    """Held-out R² of every feature from each model's activations.

    No regularisation is chosen: what a stitch keeps for that (`splits.PARTS`) is held out too, together a fifth.

    Returns:
        By side "a" and "b", (F,) float32: 1 - residual / total sum of squares on the held-out pairs, NaN where a
        feature fires too rarely. Below 0: worse than the held-out mean.
    """
    # mps has no float64.
    device = device if device.type == "cuda" else torch.device("cpu")
    part_N = stretches.part_of(sample.rows_N)
    used = (part_N == 0, part_N > 0)
    blocks = _blocks(sample.codes_NF, max(1, _BLOCK_BYTES[device.type] // (_BLOCK_ARRAYS * 8 * max(store.widths))))
    firings_F = np.minimum(*(firings(sample.codes_NF[part]) for part in used))
    with progress("features: predictability", len(SIDES) * len(blocks) * len(sample.rows_N), "pairs") as bar:

        def of_side(side: str) -> NDArray[np.float32]:
            empty, parts = partial(Moments.empty, store.info.sides[side].width, 0, device), list[Moments]()
            r2 = []
            for codes_NG in blocks:
                # The sums of the inputs are those of the first block.
                inputs_known, targets = bool(parts), codes_NG.shape[1]
                parts = [part.for_targets(targets) for part in parts or [empty(), empty()]]
                for held, x_nD in _summed(store, side, sample.rows_N, codes_NG, used, parts, device):
                    if not inputs_known:
                        parts[held].add_inputs(x_nD)
                    bar.advance(len(x_nD))
                r2.append(held_out_r2(*parts).cpu().numpy())
            return np.where(firings_F >= MIN_FIRINGS, np.concatenate(r2), np.nan).astype(np.float32)

        if device.type == "cuda":
            # torch loads its solver for GPUs with the first call, which no two threads may make at the same time.
            torch.linalg.cholesky(torch.eye(1, dtype=torch.float64, device=device))
        return by_side(of_side)


def firings(codes_NF: sparse.csr_matrix) -> NDArray[np.int64]:
    """(F,) pairs on which each feature fires."""
    return np.bincount(codes_NF.indices, minlength=codes_NF.shape[1])


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
    used: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    parts: list[Moments],
    device: torch.device,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Adds the targets' sums to the two parts, whose pairs `used` says, (N,) each; gives (part, inputs about the mean,
    float64) of some thousand pairs at a time, while the next ones are being added."""
    mean_D = store.mean[side].to(device).double()

    def add(some: tuple[slice, torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
        rows, x_ND = some
        done = []
        for held, part in enumerate(parts):
            places = np.flatnonzero(used[held][rows])
            for start in range(0, len(places), _FLOAT32_ROWS):
                chosen = places[start : start + _FLOAT32_ROWS]
                x_nD = x_ND[torch.from_numpy(chosen)].to(device).double().sub_(mean_D)
                add_targets(part, x_nD, codes_NG[rows.start + chosen])
                done.append((held, x_nD))
        return done

    for _, done in prefetched(add, activations_of(store, side, rows_N)):
        yield from done


def add_targets(part: Moments, x_nD: torch.Tensor, f_nG: sparse.csr_matrix) -> None:
    """Take in some thousand pairs' targets, from the entries that are not 0.

    Their products with the inputs are summed in float32 over these pairs, in float64 from there on.

    Args:
        x_nD: inputs about their mean, float64, on the device of the part.
    """
    n_targets, device = f_nG.shape[1], x_nD.device
    columns = f_nG.tocsc()
    index_K, start_G1 = (torch.from_numpy(one.astype(np.int64)).to(device) for one in (columns.indices, columns.indptr))
    weight_K = torch.from_numpy(columns.data.astype(np.float32, copy=False)).to(device)
    part.fx_GD += bag_sum(x_nD.float(), Bags(index_K, start_G1), weight_K)
    f_K = f_nG.data.astype(np.float64)
    part.f_G += torch.from_numpy(np.bincount(f_nG.indices, f_K, n_targets)).to(device)
    part.ff_G += torch.from_numpy(np.bincount(f_nG.indices, f_K * f_K, n_targets)).to(device)


def activations_of(
    store: ActivationStore, side: str, rows_N: NDArray[np.int64]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Consecutive parts of `rows_N` (rising row numbers of the store) with one side's activations (n, D), as stored."""

    def read(part: slice) -> torch.Tensor:
        rows_n, found = rows_N[part], []
        shards = np.searchsorted(store.first_row, rows_n, side="right") - 1
        for shard in np.unique(shards):
            local = rows_n[shards == shard] - store.first_row[shard]
            for run in np.split(local, np.flatnonzero(np.diff(local) > _GAP_ROWS) + 1):
                x_ND = store.read_side(side, Block(int(shard), int(run[0]), int(run[-1]) + 1))
                found.append(x_ND if len(x_ND) == len(run) else x_ND[torch.from_numpy(run - run[0])])
        return found[0] if len(found) == 1 else torch.cat(found)

    parts = [slice(start, start + _CHUNK_ROWS) for start in range(0, len(rows_N), _CHUNK_ROWS)]
    for part, x_nD in prefetched(read, parts):
        yield slice(part.start, part.start + len(x_nD)), x_nD
