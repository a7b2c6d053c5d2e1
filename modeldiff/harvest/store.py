"""The last files of a store: statistics.safetensors and store.json (see workspace/activations.py).

Mean and norms are of the rows as they are stored, in float64; nothing is computed in the storage dtype.
Legend: N rows, D width, K blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.console import progress
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.records import to_json
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import DATASET, STATISTICS_NAME, STORE_NAME, SideInfo, StoreInfo, rows_name
from modeldiff.workspace.bits import RowWriter
from modeldiff.workspace.hdf5 import NewFile
from modeldiff.workspace.kept import is_sound, keep_bytes
from modeldiff.workspace.stage import Work

QUANTILES = ("0", "0.01", "0.25", "0.5", "0.75", "0.99", "1")
# Rows converted to float64 at once, and fewer of wide ones.
_BLOCK_ROWS, _BLOCK_VALUES = 4096, 1 << 22


@dataclass(frozen=True)
class Rows:
    """Rows of a shard, in the stored dtype, and what its statistics need of them. All on one device."""

    x_ND: torch.Tensor
    sums_KD: torch.Tensor
    """Of each block of rows, float64."""
    norms_N: torch.Tensor
    """Of each row, float32."""

    @classmethod
    def of(cls, x_ND: torch.Tensor) -> Rows:
        """Computed where the rows are."""
        sums, norms = [], []
        for block_ND in x_ND.split(max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // x_ND.shape[1]))):
            wide_ND = block_ND.to(torch.float64)
            sums.append(wide_ND.sum(dim=0))
            norms.append(wide_ND.norm(dim=1).to(torch.float32))
        return cls(x_ND, torch.stack(sums), torch.cat(norms))


class RunningStatistics:
    """Sum and norms of a shard's rows. The same rows in the same order give the same bits, on one kind of device."""

    def __init__(self, width: int) -> None:
        self._sum_D = torch.zeros(width, dtype=torch.float64)
        self._norms: list[NDArray[np.float32]] = []

    def add(self, rows: Rows) -> None:
        """Take rows, on the CPU."""
        for sum_D in rows.sums_KD:
            self._sum_D += sum_D
        # Norms are kept for the exact median: 4 bytes per row.
        self._norms.append(rows.norms_N.numpy())

    def save(self, folder: Path, shard: int, side: str, digest_P: NDArray[np.uint8]) -> None:
        """Keep them for `combine`, with the digests of the pieces that hold the rows."""
        norms = np.concatenate(self._norms) if self._norms else np.zeros(0, np.float32)
        keep_bytes(_path(folder, shard, side), save({"sum": self._sum_D.numpy(), "norms": norms, "digests": digest_P}))


@contextmanager
def shard_file(
    work: Work, shard: int, side: str, rows: int, width: int, encoding: str
) -> Iterator[Callable[[Rows], None]]:
    """Inside, give the rows of one side of a shard to the function, part by part; then the file is committed."""
    temporary, statistics = work.temporary(rows_name(shard, side)), RunningStatistics(width)
    with NewFile(temporary) as file:
        writer = RowWriter(file, DATASET, rows, width, encoding)

        def append(part: Rows) -> None:
            writer.append(part.x_ND)
            file.check()
            statistics.add(part)

        yield append
    # Before the rows are committed: whoever finds the rows finds their statistics.
    statistics.save(work.resume, shard, side, writer.digests)
    work.commit(temporary, rows_name(shard, side))


def missing_shards(work: Work, shards: list[int], side: str) -> list[int]:
    """The shards whose rows of one side are still to be written; `shards` are the pairs of each. What an earlier run
    has left is read, and a shard of which something is damaged is written again."""
    missing = []
    with progress(f"check what is there of {side.upper()}", sum(shards), "pairs") as bar:
        for shard, pairs in enumerate(shards):
            # Both are asked, so that each of them that is damaged is named.
            if not all([work.has(rows_name(shard, side)), is_sound(_path(work.resume, shard, side))]):
                missing.append(shard)
            bar.advance(pairs)
    return missing


def combine(
    folder: Path, shards: int, side: str
) -> tuple[NDArray[np.float64], dict[str, float], dict[str, NDArray[np.uint8]]]:
    """(mean (D,), exact norm quantiles with linear interpolation, digests by file) of one side over all shards."""
    parts = [load_file(_path(folder, shard, side)) for shard in range(shards)]
    norms_N = np.concatenate([part["norms"] for part in parts])
    norms_N.sort()
    mean_D = sum((part["sum"] for part in parts), np.zeros(())) / len(norms_N)
    digests = {rows_name(shard, side): part["digests"] for shard, part in enumerate(parts)}
    return mean_D, {quantile: _quantile(norms_N, float(quantile)) for quantile in QUANTILES}, digests


def _quantile(sorted_N: NDArray[np.float32], wanted: float) -> float:
    """As np.quantile gives it in float64, without a copy of all numbers in float64."""
    last = len(sorted_N) - 1
    low = int(last * wanted)
    around = sorted_N[[low, min(low + 1, last)]].astype(np.float64)
    return float(np.quantile(around, last * wanted - low))


def _path(folder: Path, shard: int, side: str) -> Path:
    return folder / f"statistics-{shard:05d}.{side}.safetensors"


def write_store(
    work: Work,
    settings: HarvestSettings,
    widths: dict[str, int],
    layers: dict[str, int | None],
    shards: list[int],
    labels: list[str],
) -> dict[str, Any]:
    """Write the statistics of all rows, and store.json; give the metrics of the manifest that follow from them. widths,
    layers: by side; shards: pairs of each, all of them written; labels: of the text sources."""
    arrays, sides = dict[str, NDArray[Any]](), {}
    for side in SIDES:
        arrays[f"mean_{side}"], quantiles, digests = combine(work.resume, len(shards), side)
        arrays |= digests
        model = getattr(settings, f"model_{side}")
        sides[side] = SideInfo(
            width=widths[side],
            encoding=settings.storage,
            model=_absolute(model) if model else None,
            revision=getattr(settings, f"revision_{side}"),
            layer=layers[side],
            median_norm=quantiles["0.5"],
            norm_quantiles=quantiles,
        )
    work.write_bytes(STATISTICS_NAME, save(arrays))
    has_texts = not settings.importing or settings.import_texts is not None
    work.write_json(STORE_NAME, to_json(StoreInfo(sum(shards), shards, labels, has_texts, sides)))
    return {"pairs": sum(shards), "median_norm": {side: sides[side].median_norm for side in SIDES}}


def _absolute(name: str) -> str:
    """A model's name for store.json: later commands may run in another folder, so a path is made absolute."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
