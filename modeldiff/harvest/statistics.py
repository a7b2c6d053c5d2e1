"""Mean and norms of the rows as they are stored, in float64; nothing is computed in the storage dtype.

Legend: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.harvest.quantiles import quantiles
from modeldiff.workspace.files import write_bytes

QUANTILES = ("0", "0.01", "0.25", "0.5", "0.75", "0.99", "1")
# Rows converted to float64 at once, and fewer of wide ones.
_BLOCK_ROWS, _BLOCK_VALUES = 4096, 1 << 22


class RunningStatistics:
    """Sum and norms of rows that come in blocks. The same blocks in the same order give the same bits."""

    def __init__(self, width: int) -> None:
        self._sum_D = torch.zeros(width, dtype=torch.float64)
        self._norms: list[NDArray[np.float32]] = []

    def add(self, x_ND: torch.Tensor) -> None:
        """Take rows (N, D) in the stored dtype."""
        for block_ND in x_ND.split(max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // x_ND.shape[1]))):
            wide_ND = block_ND.to(torch.float64)
            self._sum_D += wide_ND.sum(dim=0)
            # Norms are kept for the exact median: 4 bytes per row.
            self._norms.append(wide_ND.norm(dim=1).to(torch.float32).numpy())

    def save(self, folder: Path, shard: int, side: str) -> None:
        """Write this shard's sums, atomically, for `combine`."""
        norms = np.concatenate(self._norms) if self._norms else np.zeros(0, np.float32)
        write_bytes(_path(folder, shard, side), save({"sum": self._sum_D.numpy(), "norms": norms}))


def save_shard_statistics(folder: Path, shard: int, side: str, x_ND: torch.Tensor) -> None:
    """Statistics of one shard's rows (N, D) in the stored dtype, kept until `combine`."""
    statistics = RunningStatistics(x_ND.shape[1])
    statistics.add(x_ND)
    statistics.save(folder, shard, side)


def combine(folder: Path, shards: int, side: str) -> tuple[NDArray[np.float64], float, dict[str, float]]:
    """(mean (D,), median norm, norm quantiles) of one side over all shards, of which one at a time is in memory.

    The median and quantiles are exact (linear interpolation), over all rows.
    """
    sum_D, rows = np.zeros(()), 0
    for part in _parts(folder, shards, side):
        sum_D = sum_D + part["sum"]
        rows += len(part["norms"])
    values = quantiles(lambda: (part["norms"] for part in _parts(folder, shards, side)), [float(q) for q in QUANTILES])
    found = dict(zip(QUANTILES, values, strict=True))
    return sum_D / rows, found["0.5"], found


def _parts(folder: Path, shards: int, side: str) -> Iterator[dict[str, Any]]:
    return (load_file(_path(folder, shard, side)) for shard in range(shards))


def _path(folder: Path, shard: int, side: str) -> Path:
    return folder / f"statistics-{shard:05d}.{side}.safetensors"
