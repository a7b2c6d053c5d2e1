"""Reading an `activations` artifact: paired rows in blocks, and for each row where it comes from.

Layout (normative; of the other files: plan.py, harvest/report.py, harvest/capture.py):
    store.json                            fields of `StoreInfo`
    statistics.safetensors
        mean_a (Da,) float64              mean of A's rows as stored, raw units
        mean_b (Db,) float64
        shards/00000.a.h5 (Pa, 32) uint8    of each file of rows, BLAKE3 of its pieces (see bits.py)
        shards/00000.b.h5 (Pb, 32) uint8
    shards/00000.a.h5
        activations (N, Da) uint16/float16/float32    A's residual stream, raw units, encoded as bits.py says: row i is
                                          that of pair i of the shard's plan
    shards/00000.b.h5
        activations (N, Db) uint16/float16/float32    likewise B's

Shards are numbered from 0 on, in five digits or more, and the rows of the whole store are those of shard 0, of shard 1,
and so on. Legend: N rows (pairs) of a shard, Da, Db widths, Pa, Pb pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.numpy import load_file

from modeldiff.errors import DamagedError, InputError
from modeldiff.records import from_json
from modeldiff.sides import SIDES
from modeldiff.workspace.artifact import Artifact
from modeldiff.workspace.bits import ENCODINGS, Read, RowLayout, bits_of, bytes_per_value, encoding_of, read_all
from modeldiff.workspace.files import read_json
from modeldiff.workspace.hdf5 import open_hdf5
from modeldiff.workspace.plan import ShardPlan, read_plan

STORE_NAME = "store.json"
STATISTICS_NAME = "statistics.safetensors"
DATASET = "activations"


def plan_name(shard: int) -> str:
    return f"shards/{shard:05d}.plan.h5"


def rows_name(shard: int, side: str) -> str:
    return f"shards/{shard:05d}.{side}.h5"


@dataclass(frozen=True)
class SideInfo:
    width: int
    """D of this model's residual stream."""
    encoding: str
    """bfloat16, float16 or float32, as stored."""
    median_norm: float
    """Median L2 norm of the rows, in raw units (paper B.1: one scalar per model brings it to sqrt((Da + Db) / 2))."""
    norm_quantiles: dict[str, float]
    """L2 norm at quantiles "0", "0.01", "0.25", "0.5", "0.75", "0.99", "1"."""
    model: str | None
    """Hub name or folder of the model; None when imported without saying."""
    revision: str | None
    """Of the hub, if one was asked for."""
    layer: int | None
    """Residual stream after this block, counted from 0; of the last one before the model's final norm."""


@dataclass(frozen=True)
class StoreInfo:
    pairs: int
    """Of all shards together."""
    shards: list[int]
    """Number of pairs of each shard."""
    sources: list[str]
    """Labels of the text sources; plans and features have their numbers."""
    has_texts: bool
    """False: imported without texts, and there are no plans."""
    sides: dict[str, SideInfo]
    """"a" and "b"."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one shard that are read at once."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class ActivationStore:
    """An `activations` artifact, opened for reading. Files are opened per read and never kept open across forks. Raises
    DamagedError: a file is missing, damaged, or disagrees with store.json about its rows."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        path = artifact.file(STORE_NAME)
        self.info = from_json(StoreInfo, read_json(path), str(path))
        self._statistics = load_file(artifact.file(STATISTICS_NAME))
        self.mean = {side: torch.from_numpy(self._statistics[f"mean_{side}"]) for side in SIDES}
        self.first_row = [0, *np.cumsum(self.info.shards).tolist()]
        self._layouts: dict[str, RowLayout] = {}

    @property
    def pairs(self) -> int:
        return self.info.pairs

    @property
    def widths(self) -> tuple[int, int]:
        """(Da, Db)."""
        return self.info.sides["a"].width, self.info.sides["b"].width

    @property
    def pair_bytes(self) -> int:
        return sum(side.width * bytes_per_value(side.encoding) for side in self.info.sides.values())

    def blocks(self, rows: int) -> list[Block]:
        """All rows in consecutive blocks of at most `rows`, never across shards."""
        return [
            Block(shard, start, min(start + rows, count))
            for shard, count in enumerate(self.info.shards)
            for start in range(0, count, rows)
        ]

    def read(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_a (N, Da), x_b (N, Db)) of a block, CPU tensors in the stored dtype, raw units."""
        return self.read_side("a", block), self.read_side("b", block)

    def read_side(self, side: str, block: Block) -> torch.Tensor:
        """x (N, D) of one side of a block."""
        x_ND = self.empty_rows(side, len(block))
        self.read_into(side, [block], x_ND)
        return x_ND

    def empty_rows(self, side: str, rows: int) -> torch.Tensor:
        """Memory (N, D) for rows of one side, in their dtype; what it holds is undefined."""
        dtype, stored = ENCODINGS[self.info.sides[side].encoding]
        # numpy asks for huge pages, torch does not: filling new memory takes several times as long without them.
        return torch.from_numpy(np.empty((rows, self.info.sides[side].width), stored)).view(dtype)

    def read_into(self, side: str, blocks: Sequence[Block], x_ND: torch.Tensor) -> None:
        """Read blocks of one side into the rows of `x_ND` (contiguous; see `empty_rows`), one after the other. The
        files are read from front to back, several reads at a time, whatever the order of the blocks."""
        ends = np.cumsum([len(block) for block in blocks]).tolist()
        reads: list[Read] = []
        for block, end in sorted(zip(blocks, ends, strict=True), key=lambda one: (one[0].shard, one[0].start)):
            if len(block):
                into = bits_of(x_ND[end - len(block) : end]).data.cast("B")
                reads += self._layout(side, block.shard).reads(block.start, into)
        try:
            read_all(reads)
        except OSError as error:
            raise DamagedError(f"{error.filename}: cannot be read ({error.strerror}); {self.artifact.mend}") from None

    def _layout(self, side: str, shard: int) -> RowLayout:
        """Where a file's rows are; the file is checked at the first call."""
        name = rows_name(shard, side)
        if name not in self._layouts:
            path = self.artifact.file(name, read=False)
            info = self.info.sides[side]
            expected = (self.info.shards[shard], info.width)
            try:
                with open_hdf5(path) as file:
                    dataset = file[DATASET]
                    if dataset.shape != expected or encoding_of(dataset) != info.encoding:
                        raise DamagedError(
                            f"{path}: expected {expected} rows and columns in {info.encoding}, found {dataset.shape} "
                            f"in {encoding_of(dataset)}; {self.artifact.mend}"
                        )
                    self._layouts[name] = RowLayout.of(dataset, self._statistics[name])
            except (OSError, KeyError, AttributeError) as error:
                raise DamagedError(f"{path}: cannot be read ({error}); {self.artifact.mend}") from None
        return self._layouts[name]

    def plan(self, shard: int) -> ShardPlan:
        """Texts, tokens and pairs of a shard. Raises InputError: the activations were imported without texts."""
        if not self.info.has_texts:
            raise InputError(
                f"{self.artifact.ref} was imported without texts: this needs them; import again with "
                "`modeldiff harvest --import-a FILE --import-b FILE --import-texts FILE.jsonl`"
            )
        return read_plan(self.artifact.file(plan_name(shard)))
