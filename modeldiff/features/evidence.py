"""Predictability: how much of a feature's activation a linear map of one model's activations explains (held out).

A feature that only A has should be explained by A's activations and not by B's (a sparse feature is never fully linear
in either, so both sides are measured). Ridge regression in closed form, float64, for all features at once, from the
moments of one pass over a sample of the pairs.

Legend: N pairs, D width of one model, F features, G features of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.crosscoder.predictability import Moments, held_out_r2
from modeldiff.features.codes import CodeSample
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.plan import SIDES

HELD_OUT_EVERY = 5
"""Every 5th stretch of the sample is held out."""
MIN_FIRINGS = 5
"""Fewer firings than this in either part: R² would be a matter of luck, none is given."""
# Stretches are long enough that neighbouring tokens of one text rarely fall in different parts.
_MAX_STRETCH, _MIN_STRETCHES = 512, 20
_CHUNK_ROWS = 16_384
_GROUP_BYTES = 2 << 30


def predictability(store: ActivationStore, sample: CodeSample, device: torch.device) -> dict[str, NDArray[np.float32]]:
    """Held-out R² of every feature from each model's activations.

    Returns:
        By side "a" and "b", (F,) float32: 1 - residual / total sum of squares on the held-out pairs, NaN where a
        feature fires too rarely. Below 0: worse than the held-out mean.
    """
    n_features = sample.codes_NF.shape[1]
    group = max(1, min(n_features, _GROUP_BYTES // (2 * 8 * max(store.widths))))
    starts = range(0, n_features, group)
    # mps has no float64.
    device = device if device.type == "cuda" else torch.device("cpu")
    held_N = held_out(len(sample.rows_N))
    columns = sample.codes_NF.tocsc()
    result = {side: np.full(n_features, np.nan, np.float32) for side in SIDES}
    total = len(SIDES) * len(starts) * len(sample.rows_N)
    with progress("features: predictability", total, "pairs") as bar:
        for side in SIDES:
            for start in starts:
                chosen = slice(start, min(start + group, n_features))
                codes_NG = columns[:, chosen].tocsr().astype(np.float64)
                width, targets = store.info.sides[side].width, codes_NG.shape[1]
                parts = [Moments.empty(width, targets) for _ in range(2)]
                for rows, x_ND in _chunks(store, side, sample.rows_N):
                    x_ND = x_ND.to(device)
                    for held, part in enumerate(parts):
                        mask = held_N[rows] == bool(held)
                        _add(part, x_ND[torch.from_numpy(mask).to(device)], codes_NG[rows][mask])
                    bar.advance(len(x_ND))
                r2_G = held_out_r2(*parts).numpy()
                result[side][chosen] = np.where(_firings(codes_NG, held_N) >= MIN_FIRINGS, r2_G, np.nan)
    return result


def held_out(n: int) -> NDArray[np.bool_]:
    """(N,) True for the pairs of the sample that no regression is fitted on."""
    stretch = max(1, min(_MAX_STRETCH, n // _MIN_STRETCHES))
    return (np.arange(n) // stretch) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _add(part: Moments, x_ND: torch.Tensor, f_NG: sparse.csr_matrix) -> None:
    """Take in pairs: inputs float64 on any device, codes float64. What is sparse is summed on the host."""
    sums = (
        np.asarray(f_NG.sum(axis=0)).ravel(),
        np.asarray(f_NG.multiply(f_NG).sum(axis=0)).ravel(),
        f_NG.T @ x_ND.cpu().numpy(),
    )
    part.add(x_ND, *map(torch.from_numpy, sums))


def _firings(codes_NG: sparse.csr_matrix, held_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(G,) firings in that part, training or held out, in which the feature fires less."""
    return np.minimum(*(np.bincount(codes_NG[m].indices, minlength=codes_NG.shape[1]) for m in (held_N, ~held_N)))


def _chunks(store: ActivationStore, side: str, rows_N: NDArray[np.int64]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Consecutive parts of the sample with their activations, float64, the store's mean taken off."""
    mean_D = store.mean[side].double()
    for start in range(0, len(rows_N), _CHUNK_ROWS):
        rows = rows_N[start : start + _CHUNK_ROWS]
        parts = []
        shards = np.searchsorted(store.first_row, rows, side="right") - 1
        for shard in np.unique(shards):
            local = rows[shards == shard] - store.first_row[shard]
            for run in np.split(local, np.flatnonzero(np.diff(local) > _CHUNK_ROWS // 16) + 1):
                block = Block(int(shard), int(run[0]), int(run[-1]) + 1)
                parts.append(store.read_side(side, block)[torch.from_numpy(run - run[0])])
        yield slice(start, start + len(rows)), torch.cat(parts).double() - mean_D
