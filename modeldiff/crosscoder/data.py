"""Pairs for training, read in whole blocks and shuffled in memory; and the blocks that are kept for evaluation.

Blocks are read in random order until a buffer is full (a group); pairs are drawn from it in random order. A batch may
begin in one group and end in the next, so every pair is used exactly once per pass, and the stream is a function of the
seed and the number of the step alone: a resumed run needs no other cursor.

Reading single rows at random is 50 to 70 times slower than reading whole blocks.

Legend: N rows of a group, B rows of a batch, Da, Db widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from modeldiff.errors import InputError
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


class PairStream:
    """Batches of pairs without end, over and over the blocks, in an order that depends on the seed.

    Args:
        buffer_bytes: memory of one group as stored; while it is used, the next one is read beside it.
    """

    def __init__(
        self, store: ActivationStore, blocks: list[Block], *, batch: int, seed: int, buffer_bytes: int
    ) -> None:
        self._store = store
        self._blocks = blocks
        self._batch = batch
        self._seed = seed
        row_bytes = sum(side.width * bytes_per_value(side.encoding) for side in store.info.sides.values())
        self._buffer_rows = max(1, buffer_bytes // row_bytes)
        self.rows_per_epoch = sum(len(block) for block in blocks)
        self._last_read: tuple[tuple[Block, ...], tuple[torch.Tensor, torch.Tensor]] | None = None

    def batches(self, first_step: int = 0) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """(x_a (B, Da), x_b (B, Db)) for the steps from `first_step` on: raw, stored dtype, on the CPU."""
        plan = self._groups(first_step * self._batch)
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        missing = self._batch
        with ThreadPoolExecutor(1, "read pairs") as reader:
            pending = reader.submit(self._read, next(plan))
            while True:
                group, x_a_NDa, x_b_NDb = pending.result()
                pending = reader.submit(self._read, next(plan))
                order_N = self._row_order(group, len(x_a_NDa))
                at = group.skip
                while at < len(order_N):
                    rows = order_N[at : at + missing]
                    parts.append((x_a_NDa[rows], x_b_NDb[rows]))
                    at += len(rows)
                    missing -= len(rows)
                    if missing == 0:
                        yield _joined(parts)
                        parts, missing = [], self._batch

    def _groups(self, first_row: int) -> Iterator[_Group]:
        """The groups from the one on that holds row `first_row` of the stream."""
        first_epoch, skip = divmod(first_row, self.rows_per_epoch)
        for epoch in itertools.count(first_epoch):
            for number, blocks in enumerate(self._grouped(self._block_order(epoch))):
                rows = sum(len(block) for block in blocks)
                if skip < rows:
                    yield _Group(epoch, number, blocks, skip)
                skip = max(0, skip - rows)

    def _block_order(self, epoch: int) -> list[Block]:
        if self.rows_per_epoch <= self._buffer_rows:
            return self._blocks  # all in one group: the order of the rows is all that matters
        order = np.random.default_rng([self._seed, _BLOCKS, epoch]).permutation(len(self._blocks))
        return [self._blocks[i] for i in order]

    def _grouped(self, blocks: list[Block]) -> Iterator[tuple[Block, ...]]:
        group: list[Block] = []
        rows = 0
        for block in blocks:
            if group and rows + len(block) > self._buffer_rows:
                yield tuple(group)
                group, rows = [], 0
            group.append(block)
            rows += len(block)
        yield tuple(group)

    def _row_order(self, group: _Group, rows: int) -> torch.Tensor:
        random = np.random.default_rng([self._seed, _ROWS, group.epoch, group.number])
        return torch.from_numpy(random.permutation(rows))

    def _read(self, group: _Group) -> tuple[_Group, torch.Tensor, torch.Tensor]:
        if self._last_read is None or self._last_read[0] != group.blocks:
            self._last_read = None  # its memory may go before the next is filled
            self._last_read = (group.blocks, read_blocks(self._store, group.blocks))
        return group, *self._last_read[1]


def read_blocks(store: ActivationStore, blocks: tuple[Block, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_a (N, Da), x_b (N, Db)) of several blocks, raw, stored dtype."""
    rows = sum(len(block) for block in blocks)
    filled: list[torch.Tensor] = []
    for side in store.info.sides:
        at, x_ND = 0, torch.empty(0)
        for block in blocks:
            part = store.read_side(side, block)
            if at == 0:
                x_ND = torch.empty(rows, part.shape[1], dtype=part.dtype)
            x_ND[at : at + len(part)] = part
            at += len(part)
        filled.append(x_ND)
    return filled[0], filled[1]


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])
