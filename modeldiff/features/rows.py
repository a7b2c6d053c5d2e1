"""Activations of given pairs of a store, in order, a bounded number at a time.

Legend: N pairs, D width of one model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.threads import prefetched
from modeldiff.workspace.activations import ActivationStore, Block

CHUNK_ROWS = 16_384
"""Most rows in memory at once."""
# Rows in between that are read along with those that are wanted.
_GAP_ROWS = 1024


def activations_of(
    store: ActivationStore, side: str, rows_N: NDArray[np.int64]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Consecutive parts of `rows_N` (rising row numbers of the store) with one side's activations (n, D), as stored."""
    parts = [slice(start, start + CHUNK_ROWS) for start in range(0, len(rows_N), CHUNK_ROWS)]
    for part, x_ND in prefetched(lambda part: _read(store, side, rows_N[part]), parts):
        yield slice(part.start, part.start + len(x_ND)), x_ND


def _read(store: ActivationStore, side: str, rows_N: NDArray[np.int64]) -> torch.Tensor:
    parts = []
    shards = np.searchsorted(store.first_row, rows_N, side="right") - 1
    for shard in np.unique(shards):
        local = rows_N[shards == shard] - store.first_row[shard]
        for run in np.split(local, np.flatnonzero(np.diff(local) > _GAP_ROWS) + 1):
            x_ND = store.read_side(side, Block(int(shard), int(run[0]), int(run[-1]) + 1))
            parts.append(x_ND if len(x_ND) == len(run) else x_ND[torch.from_numpy(run - run[0])])
    return parts[0] if len(parts) == 1 else torch.cat(parts)
