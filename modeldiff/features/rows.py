"""Activations of given pairs of a store, in order, a bounded number at a time.

Legend: N pairs, D width of one model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.workspace.activations import ActivationStore, Block

CHUNK_ROWS = 16_384
"""Most rows in memory at once."""


def activations_of(
    store: ActivationStore, side: str, rows_N: NDArray[np.int64]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Consecutive parts of `rows_N` (rising row numbers of the store) with one side's activations (n, D), as stored."""
    for start in range(0, len(rows_N), CHUNK_ROWS):
        rows = rows_N[start : start + CHUNK_ROWS]
        parts = []
        shards = np.searchsorted(store.first_row, rows, side="right") - 1
        for shard in np.unique(shards):
            local = rows[shards == shard] - store.first_row[shard]
            for run in np.split(local, np.flatnonzero(np.diff(local) > CHUNK_ROWS // 16) + 1):
                block = Block(int(shard), int(run[0]), int(run[-1]) + 1)
                parts.append(store.read_side(side, block)[torch.from_numpy(run - run[0])])
        yield slice(start, start + len(rows)), torch.cat(parts)
