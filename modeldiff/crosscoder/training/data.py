"""Pairs for training, read in whole blocks and shuffled in memory.

Blocks in random order fill half of a buffer (a group); pairs are drawn from it in random order while the next group is
read into the other half. Where all pairs fit into the buffer they are one group, read once. A batch may begin in one
group and end in the next, so every pair is used exactly once per pass, and the stream is a function of the seed and the
number of the step alone: a resumed run needs no other cursor.

Legend: N rows of a group, B rows of a batch, Da, Db widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import torch

from modeldiff.crosscoder.model import Both
from modeldiff.sides import SIDES
from modeldiff.threads import prefetched
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.bits import bits_of

_BLOCKS, _ROWS = 0, 1  # streams of random numbers: the order of blocks, and of rows
Rows = dict[str, torch.Tensor]
"""By side, activations (N, D) as stored."""
_Group = tuple[int, int, list[Block], int]
"""Blocks that are in memory together: their epoch and number in it, and how many of their rows were used before."""


class PairStream:
    """Batches of pairs without end, over and over the blocks, in an order that depends on the seed.

    Args:
        buffer_bytes: for pairs as stored, beside batches. A block larger than half of it is held all the same.
        device: where batches are wanted. For CUDA they go through pinned memory, one batch ahead.
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
        self._store, self._blocks, self._batch, self._seed = store, blocks, batch, seed
        self._device = torch.device(device)
        self.rows_per_epoch = sum(map(len, blocks))
        rows = max(1, buffer_bytes // store.pair_bytes)
        self._in_one = self.rows_per_epoch <= rows
        self._group_rows = self.rows_per_epoch if self._in_one else max(1, rows // 2)

    def batches(self, first_step: int = 0) -> Generator[Both, None, None]:
        """(x_a (B, Da), x_b (B, Db)) for the steps from `first_step` on: raw, stored dtype, on the device. On the CPU
        the memory of a batch is used again for the next one: filling new memory takes twice as long."""
        with closing(self._on_cpu(first_step)) as batches:
            if self._device.type != "cuda":
                yield from batches
                return
            # Each batch is under way before it is asked for, beside the step before it: in a stream of its own. Pinned
            # memory is not used again before it was copied.
            aside = torch.cuda.Stream(self._device)

            def sent(_: int) -> tuple[list[torch.Tensor], torch.cuda.Event]:
                with torch.cuda.stream(aside):
                    x = [one.pin_memory().to(self._device, non_blocking=True) for one in next(batches)]
                    return x, aside.record_event()

            for _, ((x_a, x_b), copied) in prefetched(sent, itertools.count()):
                current = torch.cuda.current_stream(self._device)
                current.wait_event(copied)
                for one in (x_a, x_b):  # their memory is the stream's, and is not used again before this one is done
                    one.record_stream(current)
                yield x_a, x_b

    def _on_cpu(self, first_step: int) -> Generator[Both, None, None]:
        batch, filled = self._empty(self._batch), 0
        with closing(self._read(first_step * self._batch)) as groups:
            for (epoch, number, blocks, at), x in groups:
                order_N = np.random.default_rng([self._seed, _ROWS, epoch, number]).permutation(sum(map(len, blocks)))
                while at < len(order_N):
                    rows = order_N[at : at + self._batch - filled]
                    for side in SIDES:
                        # In one thread: the other reads. No row is clipped, but the other modes copy once more.
                        into = bits_of(batch[side][filled : filled + len(rows)])
                        np.take(bits_of(x[side]), rows, axis=0, out=into, mode="clip")
                    at += len(rows)
                    filled = (filled + len(rows)) % self._batch
                    if not filled:
                        yield batch["a"], batch["b"]

    def _read(self, first_row: int) -> Generator[tuple[_Group, Rows], None, None]:
        """`_groups` with their pairs; each is read while the one before it is used."""
        if self._in_one:
            x = self._into(self._empty(self.rows_per_epoch), self._blocks)
            yield from ((group, x) for group in self._groups(first_row))
            return
        rows = max(self._group_rows, *(len(block) for block in self._blocks))
        halves = itertools.cycle([self._empty(rows), self._empty(rows)])
        numbered = zip(self._groups(first_row), halves, strict=False)
        yield from ((group, x) for (group, _), x in prefetched(lambda one: self._into(one[1], one[0][2]), numbered))

    def _empty(self, rows: int) -> Rows:
        return {side: self._store.empty_rows(side, rows) for side in SIDES}

    def _into(self, x: Rows, blocks: list[Block]) -> Rows:
        for side in SIDES:
            self._store.read_into(side, blocks, x[side][: sum(map(len, blocks))])
        return x

    def _groups(self, first_row: int) -> Iterator[_Group]:
        """The groups from the one on that holds row `first_row` of the stream."""
        first_epoch, skip = divmod(first_row, self.rows_per_epoch)
        for epoch in itertools.count(first_epoch):
            for number, blocks in enumerate(self._grouped(epoch)):
                if skip < sum(map(len, blocks)):
                    yield epoch, number, blocks, skip
                skip = max(0, skip - sum(map(len, blocks)))

    def _grouped(self, epoch: int) -> Iterator[list[Block]]:
        if self._in_one:
            yield self._blocks  # the order of the rows is all that matters
            return
        group: list[Block] = []
        for at in np.random.default_rng([self._seed, _BLOCKS, epoch]).permutation(len(self._blocks)):
            block = self._blocks[at]
            if group and sum(map(len, group)) + len(block) > self._group_rows:
                yield group
                group = []
            group.append(block)
        yield group
