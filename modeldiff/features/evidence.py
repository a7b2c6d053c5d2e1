"""Predictability: how much of a feature's activation a linear map of one model's activations explains (held out).

A feature that only A has should be explained by A's activations and not by B's (a sparse feature is never fully linear
in either, so both sides are measured). Ridge regression in closed form, float64, for all features at once, from the
moments of one pass over a sample of the pairs.

Legend: N pairs, D width of one model, F features, G features of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.features.codes import CodeSample
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.plan import SIDES

RIDGE = 1e-4
"""Regularisation, as a share of the mean of the Gram matrix's diagonal: enough for a stable solution, too little to
hide a direction of small variance."""
HELD_OUT_EVERY = 5
"""Every 5th stretch of the sample is held out."""
MIN_FIRINGS = 5
"""Fewer firings than this in either part: R² would be a matter of luck, none is given."""
# Stretches are long enough that neighbouring tokens of one text rarely fall in different parts.
_MAX_STRETCH, _MIN_STRETCHES = 512, 20
_CHUNK_ROWS = 16_384
_GROUP_BYTES = 2 << 30

Floats = NDArray[np.float64]


@dataclass
class _Moments:
    """Sums over the pairs of one part (training or held out)."""

    n: int
    x_D: Floats
    xx_DD: Floats
    f_G: Floats
    ff_G: Floats
    fx_GD: Floats

    @classmethod
    def empty(cls, width: int, group: int) -> _Moments:
        return cls(
            0, np.zeros(width), np.zeros((width, width)), np.zeros(group), np.zeros(group), np.zeros((group, width))
        )

    def add(self, x_ND: torch.Tensor, f_NG: sparse.csr_matrix) -> None:
        """x_ND: float64, on any device; f_NG: float64."""
        x_host_ND = x_ND.cpu().numpy()
        self.n += len(x_host_ND)
        self.x_D += x_host_ND.sum(0)
        self.xx_DD += (x_ND.T @ x_ND).cpu().numpy()
        self.f_G += np.asarray(f_NG.sum(axis=0)).ravel()
        self.ff_G += np.asarray(f_NG.multiply(f_NG).sum(axis=0)).ravel()
        self.fx_GD += f_NG.T @ x_host_ND

    def centred(self) -> tuple[Floats, Floats, Floats]:
        """(xx_DD, ff_G, fx_GD) about this part's own means."""
        n = max(1, self.n)
        return (
            self.xx_DD - np.outer(self.x_D, self.x_D) / n,
            self.ff_G - self.f_G**2 / n,
            self.fx_GD - np.outer(self.f_G, self.x_D) / n,
        )


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
                parts = [_Moments.empty(store.info.sides[side].width, codes_NG.shape[1]) for _ in range(2)]
                for rows, x_ND in _chunks(store, side, sample.rows_N):
                    x_ND = x_ND.to(device)
                    for held, part in enumerate(parts):
                        mask = held_N[rows] == bool(held)
                        part.add(x_ND[torch.from_numpy(mask).to(device)], codes_NG[rows][mask])
                    bar.advance(len(x_ND))
                result[side][chosen] = _held_out_r2(parts[0], parts[1], _firings(codes_NG, held_N))
    return result


def held_out(n: int) -> NDArray[np.bool_]:
    """(N,) True for the pairs of the sample that no regression is fitted on."""
    stretch = max(1, min(_MAX_STRETCH, n // _MIN_STRETCHES))
    return (np.arange(n) // stretch) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _held_out_r2(train: _Moments, held: _Moments, firings_G: NDArray[np.int64]) -> NDArray[np.float32]:
    if not train.n or not held.n:
        return np.full(len(firings_G), np.nan, np.float32)
    xx_DD, _, fx_GD = train.centred()
    width = len(xx_DD)
    ridge = max(RIDGE * np.trace(xx_DD) / width, np.finfo(np.float64).tiny)
    lower = torch.linalg.cholesky(torch.from_numpy(xx_DD + ridge * np.eye(width)))
    w_DG = torch.cholesky_solve(torch.from_numpy(fx_GD.T.copy()), lower).numpy()
    xx_DD, ff_G, fx_GD = held.centred()
    # The regression's intercept belongs to the training means; on held-out pairs the means differ by this much.
    shift_G = (held.f_G / held.n - train.f_G / train.n) - (held.x_D / held.n - train.x_D / train.n) @ w_DG
    residual_G = ff_G - 2 * (fx_GD.T * w_DG).sum(0) + (w_DG * (xx_DD @ w_DG)).sum(0) + held.n * shift_G**2
    known = (firings_G >= MIN_FIRINGS) & (ff_G > 0)
    return np.where(known, 1 - residual_G / np.where(known, ff_G, 1), np.nan).astype(np.float32)


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
