"""Pairs for training, read in whole blocks and shuffled in memory; and the blocks that are kept for evaluation.

Blocks in random order fill half of a buffer (a group); pairs are drawn from it in random order while the next group is
read into the other half. Where all pairs fit into the buffer they are one group, read once. A batch may begin in one
group and end in the next, so every pair is used exactly once per pass, and the stream is a function of the seed and the
number of the step alone: a resumed run needs no other cursor.

Reading single rows at random is 50 to 70 times slower than reading whole blocks.

Legend: N rows of a group, B rows of a batch, Da, Db widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.errors import InputError
from modeldiff.sides import SIDES
from modeldiff.splits import evenly_spread
from modeldiff.threads import prefetched
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.bits import bytes_per_value, chunk_rows

# Enough blocks that a few per cent of them are spread over the whole harvest.
_LEAST_BLOCKS = 64
# Keep apart the random numbers for the order of blocks and those for the order of rows.
_BLOCKS, _ROWS = 0, 1
Batch = tuple[torch.Tensor, torch.Tensor]
"""(x_a (B, Da), x_b (B, Db))."""


def split(store: ActivationStore, holdout: float) -> tuple[list[Block], list[Block]]:
    """(blocks to train on, blocks held out), the latter evenly spaced and about a share `holdout` of all.

    Whole blocks are held out, not single rows: neighbouring rows come from one text and resemble each other.

    Raises:
        InputError: there are too few pairs for both.
    """
    sides = store.info.sides.values()
    rows = min(chunk_rows(side.width, side.encoding) for side in sides)
    rows = min(rows, 1 << max(0, (store.pairs // _LEAST_BLOCKS).bit_length() - 1))
    blocks = store.blocks(rows)
    count = max(1, round(holdout * len(blocks)))
    if count >= len(blocks):
        raise InputError(
            f"{store.artifact.ref} has {store.pairs} pairs, too few to hold out {holdout:.0%} of them: harvest more"
        )
    held = set(evenly_spread(len(blocks), count))
    return [b for i, b in enumerate(blocks) if i not in held], [blocks[i] for i in sorted(held)]


@dataclass(frozen=True)
class _Group:
    """Blocks that are in the buffer together; `skip` of their rows were used before the stream began."""

    epoch: int
    number: int
    blocks: tuple[Block, ...]
    skip: int

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)


class PairStream:
    """Batches of pairs without end, over and over the blocks, in an order that depends on the seed.

    Args:
        buffer_bytes: all the memory for pairs as stored: one group of them all where they fit, else two groups, of
            which one is used while the other is read. A block that is larger than half of it is held all the same.
            Batches come on top.
        device: where batches are wanted. For CUDA they go through pinned memory, one batch ahead, and their copying
            does not wait for the device.
    """

    def __init__(
        self,
        store: ActivationStore,
        blocks: list[Block],
        *,
        batch: int,
        seed: int,
        buffer_bytes: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._store = store
        self._blocks = blocks
        self._batch = batch
        self._seed = seed
        self._device = torch.device(device)
        self.rows_per_epoch = sum(len(block) for block in blocks)
        row_bytes = sum(side.width * bytes_per_value(side.encoding) for side in store.info.sides.values())
        rows = max(1, buffer_bytes // row_bytes)
        self._in_one = self.rows_per_epoch <= rows
        self._group_rows = self.rows_per_epoch if self._in_one else max(1, rows // 2)

    def batches(self, first_step: int = 0) -> Generator[Batch, None, None]:
        """(x_a (B, Da), x_b (B, Db)) for the steps from `first_step` on: raw, stored dtype, on the device."""
        return self._ahead(first_step) if self._device.type == "cuda" else self._on_cpu(first_step)

    def _on_cpu(self, first_step: int) -> Generator[Batch, None, None]:
        batch, filled = self._empty(self._batch), 0
        with closing(self._read(first_step * self._batch)) as groups:
            for group, x in groups:
                order_N = self._row_order(group)
                at = group.skip
                while at < len(order_N):
                    rows = order_N[at : at + self._batch - filled]
                    for side in SIDES:
                        _take(x[side], rows, batch[side][filled : filled + len(rows)])
                    at += len(rows)
                    filled += len(rows)
                    if filled == self._batch:
                        yield batch["a"], batch["b"]
                        batch, filled = self._empty(self._batch), 0

    def _read(self, first_row: int) -> Generator[tuple[_Group, dict[str, torch.Tensor]], None, None]:
        """The groups from the one on that holds a row of the stream, with their pairs; each is read while the one
        before it is used."""
        if self._in_one:
            x = self._into(self._empty(self.rows_per_epoch), self._blocks)
            yield from ((group, x) for group in self._groups(first_row))
            return
        rows = max(self._group_rows, *(len(block) for block in self._blocks))
        halves = itertools.cycle([self._empty(rows), self._empty(rows)])
        numbered = zip(self._groups(first_row), halves, strict=False)
        for (group, _), x in prefetched(lambda one: self._into(one[1], one[0].blocks), numbered):
            yield group, x

    def _empty(self, rows: int) -> dict[str, torch.Tensor]:
        return {side: self._store.empty_rows(side, rows) for side in SIDES}

    def _into(self, x: dict[str, torch.Tensor], blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
        count = sum(len(block) for block in blocks)
        for side in SIDES:
            self._store.read_into(side, blocks, x[side][:count])
        return x

    def _ahead(self, first_step: int) -> Generator[Batch, None, None]:
        """The same on the device, each batch under way before it is asked for."""
        with closing(self._on_cpu(first_step)) as batches, ThreadPoolExecutor(1, "copy pairs") as worker:

            def copied() -> Batch:
                x_a, x_b = next(batches)
                return self._copy(x_a), self._copy(x_b)

            pending = worker.submit(copied)
            while True:
                batch = pending.result()
                pending = worker.submit(copied)
                yield batch

    def _copy(self, x_BD: torch.Tensor) -> torch.Tensor:
        # Pinned memory is not used again before it was copied: torch sees to that. Other memory is, so it is not given
        # to a copying that does not wait.
        if self._device.type == "cuda":
            x_BD = x_BD.pin_memory()
        return x_BD.to(self._device, non_blocking=True)

    def _groups(self, first_row: int) -> Iterator[_Group]:
        """The groups from the one on that holds row `first_row` of the stream."""
        first_epoch, skip = divmod(first_row, self.rows_per_epoch)
        for epoch in itertools.count(first_epoch):
            for number, blocks in enumerate(self._grouped(self._block_order(epoch))):
                group = _Group(epoch, number, blocks, skip)
                if skip < len(group):
                    yield group
                skip = max(0, skip - len(group))

    def _block_order(self, epoch: int) -> list[Block]:
        if self._in_one:
            return self._blocks  # all in one group: the order of the rows is all that matters
        order = np.random.default_rng([self._seed, _BLOCKS, epoch]).permutation(len(self._blocks))
        return [self._blocks[i] for i in order]

    def _grouped(self, blocks: list[Block]) -> Iterator[tuple[Block, ...]]:
        group: list[Block] = []
        rows = 0
        for block in blocks:
            if group and rows + len(block) > self._group_rows:
                yield tuple(group)
                group, rows = [], 0
            group.append(block)
            rows += len(block)
        yield tuple(group)

    def _row_order(self, group: _Group) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, _ROWS, group.epoch, group.number]).permutation(len(group))


def _take(x_ND: torch.Tensor, rows_R: NDArray[np.int64], out_RD: torch.Tensor) -> None:
    """Copy some rows. In one thread: a second one gains little, and waits for the other where the machine is busy."""
    bits = {2: torch.int16, 4: torch.int32}[x_ND.element_size()]
    # Rows are there, so none is clipped; the other modes copy once more.
    np.take(x_ND.view(bits).numpy(), rows_R, axis=0, out=out_RD.view(bits).numpy(), mode="clip")
