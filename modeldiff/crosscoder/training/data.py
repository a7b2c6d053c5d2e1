"""Pairs for training, read in whole blocks and shuffled in memory; and the blocks that are kept for evaluation.

Blocks in random order fill half of a buffer (a group); pairs are drawn from it in random order while the next group is
read into the other half. Pairs are brought to their places in their batches as they are read, so a batch is there when
its group is. Where all pairs fit into the buffer they are one group, read once, and batches are copied out of it. A
batch may begin in one group and end in the next, so every pair is used exactly once per pass, and the stream is a
function of the seed and the number of the step alone: a resumed run needs no other cursor.

Reading single rows at random is 50 to 70 times slower than reading whole blocks.

Legend: N rows of a group, B rows of a batch, Da, Db widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.crosscoder.training.batch_memory import BatchMemory
from modeldiff.errors import InputError
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.bits import bytes_per_value, chunk_rows

# Enough blocks that a few per cent of them are spread over the whole harvest.
_LEAST_BLOCKS = 64
# Keep apart the random numbers for the order of blocks and those for the order of rows.
_BLOCKS, _ROWS = 0, 1


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
    held = {int((i + 0.5) * len(blocks) / count) for i in range(count)}
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

    @property
    def used(self) -> int:
        """Rows that the stream has of it."""
        return len(self) - self.skip


class PairStream:
    """Batches of pairs without end, over and over the blocks, in an order that depends on the seed.

    Args:
        buffer_bytes: all the memory for pairs as stored: one group of them all where they fit, else two groups, of
            which one is used while the other is read. A block that is larger than half of it is held all the same.
            Batches that are given out or begun come on top.
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

    def batches(self, first_step: int = 0) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """(x_a (B, Da), x_b (B, Db)) for the steps from `first_step` on: raw, stored dtype, on the device. The
        memory of a batch is used again once nobody holds its tensors, or views of them."""
        return self._ahead(first_step) if self._device.type == "cuda" else self._on_cpu(first_step)

    def _on_cpu(self, first_step: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        return self._drawn(first_step) if self._in_one else self._placed(first_step)

    def _drawn(self, first_step: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Out of memory that holds all pairs."""
        x_ND = {side: self._store.empty_rows(side, self.rows_per_epoch) for side in SIDES}
        for side in SIDES:
            self._store.read_into(side, self._blocks, x_ND[side])
        memory = BatchMemory(self._store, self._batch, 1)
        slot, filled = memory.take(), 0
        for group in self._groups(first_step * self._batch):
            order_N = self._row_order(group)
            at = group.skip
            while at < len(order_N):
                rows = order_N[at : at + self._batch - filled]
                first = memory.first_row(slot) + filled
                for side in SIDES:
                    _take(x_ND[side], rows, memory.x[side][first : first + len(rows)])
                at += len(rows)
                filled += len(rows)
                if filled == self._batch:
                    yield memory.give_out(slot)
                    slot, filled = memory.take(), 0

    def _placed(self, first_step: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """As their pairs were placed while they were read, one group ahead."""
        rows = max(self._group_rows, *(len(block) for block in self._blocks))
        # Those that rows of two groups belong to, which begin and end anywhere.
        memory = BatchMemory(self._store, self._batch, -(-2 * rows // self._batch) + 1)
        slots: dict[int, int] = {}  # of the batches, by their numbers
        with ThreadPoolExecutor(1, "read pairs") as reader:

            def begin(group: _Group, first_row: int) -> Future[None]:
                """Read a group, whose first row in use is this row of the stream."""
                numbers = range(first_row // self._batch, -(-(first_row + group.used) // self._batch))
                for number in numbers:
                    if number not in slots:
                        slots[number] = memory.take()
                first_row_S = np.array([memory.first_row(slots[number]) for number in numbers])
                return reader.submit(self._place, group, first_row % self._batch, memory, first_row_S)

            plan = self._groups(first_step * self._batch)
            group, first_row = next(plan), first_step * self._batch
            pending = begin(group, first_row)
            while True:
                pending.result()
                last_row = first_row + group.used
                following = next(plan)
                pending = begin(following, last_row)
                for number in range(first_row // self._batch, last_row // self._batch):
                    yield memory.give_out(slots.pop(number))
                group, first_row = following, last_row

    def _place(self, group: _Group, begun: int, memory: BatchMemory, first_row_S: NDArray[np.int64]) -> None:
        """Read a group, every pair to its place.

        Args:
            begun: rows that the first batch has already.
            first_row_S: where in the memory its batches begin.
        """
        at_N = np.full(len(group), memory.nowhere)
        batch_N, row_N = np.divmod(np.arange(begun, begun + group.used), self._batch)
        at_N[self._row_order(group)[group.skip :]] = first_row_S[batch_N] + row_N
        self._store.read_scattered(group.blocks, memory.x, at_N)

    def _ahead(self, first_step: int) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """The same on the device, each batch under way before it is asked for."""
        with closing(self._on_cpu(first_step)) as batches, ThreadPoolExecutor(1, "copy pairs") as worker:

            def copied() -> tuple[torch.Tensor, torch.Tensor]:
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
