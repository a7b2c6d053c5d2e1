"""Pairs for training, read in whole blocks and shuffled in memory.

Blocks in random order fill half of a buffer (a group); pairs are drawn from it in random order while the next group is
read into the other half. Where all pairs fit into the buffer they are one group, read once. A batch may begin in one
group and end in the next, so every pair is used exactly once per pass, and the stream is a function of the seed and the
number of the step alone: a resumed run needs no other cursor.

Each of several processes reads its share of a group's rows, and they give each other the rows of a batch, as stored:
together they read the activations once, and hold one buffer.

Legend: N rows of a group, B rows of a batch, M those of them that this process read, Da, Db widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import torch

from modeldiff.crosscoder.fast.sparse import OneProcess
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
        processes: OneProcess | None = None,
    ) -> None:
        self._store, self._blocks, self._batch, self._seed = store, blocks, batch, seed
        self._device, self._processes = torch.device(device), processes or OneProcess()
        self.rows_per_epoch = sum(map(len, blocks))
        rows = max(1, buffer_bytes // store.pair_bytes)
        self._in_one = self.rows_per_epoch <= rows
        self._group_rows = self.rows_per_epoch if self._in_one else max(1, rows // 2)

    def batches(self, first_step: int = 0) -> Generator[Both, None, None]:
        """(x_a (B, Da), x_b (B, Db)) for the steps from `first_step` on: raw, stored dtype, on the device. On the CPU
        the memory of a batch is used again for the next one: filling new memory takes twice as long."""
        with closing(self._on_cpu(first_step)) as batches:
            if self._device.type != "cuda":
                for x, owner_B in batches:
                    yield self._processes.exchange(x, owner_B)
                return
            # Each batch is under way before it is asked for, beside the step before it: in a stream of its own. Pinned
            # memory is not used again before it was copied.
            aside = torch.cuda.Stream(self._device)

            def sent(_: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.cuda.Event]:
                # A thread begins on the first device, and would leave a context there when it goes back to its stream.
                torch.cuda.set_device(self._device)
                with torch.cuda.stream(aside):
                    x, owner_B = next(batches)
                    x_there = [one.pin_memory().to(self._device, non_blocking=True) for one in x]
                    return x_there, owner_B.clone(), aside.record_event()

            for _, ((x_a, x_b), owner_B, copied) in prefetched(sent, itertools.count()):
                current = torch.cuda.current_stream(self._device)
                current.wait_event(copied)
                for one in (x_a, x_b):  # their memory is the stream's, and is not used again before this one is done
                    one.record_stream(current)
                # In this thread, which makes the step's exchanges, too: all processes make them in the same order.
                yield self._processes.exchange((x_a, x_b), owner_B)

    def _on_cpu(self, first_step: int) -> Generator[tuple[Both, torch.Tensor], None, None]:
        """Of each batch, (x_a (M, Da), x_b (M, Db)) that this process has read, and (B,) which one read each row."""
        batch, filled, mine = self._empty(self._batch), 0, 0
        owner_B, rank = np.empty(self._batch, np.int64), self._processes.rank
        with closing(self._read(first_step * self._batch)) as groups:
            for (epoch, number, blocks, at), x in groups:
                order_N = np.random.default_rng([self._seed, _ROWS, epoch, number]).permutation(sum(map(len, blocks)))
                edges = self._edges(len(order_N))
                while at < len(order_N):
                    rows = order_N[at : at + self._batch - filled]
                    owner_B[filled : filled + len(rows)] = np.searchsorted(edges, rows, side="right") - 1
                    own = rows[owner_B[filled : filled + len(rows)] == rank] - edges[rank]
                    for side in SIDES:
                        # In one thread: the other reads. No row is clipped, but the other modes copy once more.
                        into = bits_of(batch[side][mine : mine + len(own)])
                        np.take(bits_of(x[side]), own, axis=0, out=into, mode="clip")
                    at, filled, mine = at + len(rows), filled + len(rows), mine + len(own)
                    if filled == self._batch:
                        yield (batch["a"][:mine], batch["b"][:mine]), torch.from_numpy(owner_B)
                        filled = mine = 0

    def _edges(self, rows: int) -> list[int]:
        """Where each process's share of a group's rows begins, and where the last one ends."""
        world = self._processes.world
        return [rows * rank // world for rank in range(world + 1)]

    def _mine(self, blocks: list[Block]) -> list[Block]:
        """The share of a group that this process reads."""
        first, stop = self._edges(sum(map(len, blocks)))[self._processes.rank :][:2]
        found, at = [], 0
        for block in blocks:
            low, high = max(first - at, 0), min(stop - at, len(block))
            if low < high:
                found.append(Block(block.shard, block.start + low, block.start + high))
            at += len(block)
        return found

    def _read(self, first_row: int) -> Generator[tuple[_Group, Rows], None, None]:
        """`_groups` with their pairs; each is read while the one before it is used."""
        if self._in_one:
            x = self._into(self._empty(self._share(self.rows_per_epoch)), self._blocks)
            yield from ((group, x) for group in self._groups(first_row))
            return
        rows = max(self._group_rows, *(len(block) for block in self._blocks))
        halves = itertools.cycle([self._empty(self._share(rows)), self._empty(self._share(rows))])
        numbered = zip(self._groups(first_row), halves, strict=False)
        yield from ((group, x) for (group, _), x in prefetched(lambda one: self._into(one[1], one[0][2]), numbered))

    def _empty(self, rows: int) -> Rows:
        return {side: self._store.empty_rows(side, rows) for side in SIDES}

    def _share(self, rows: int) -> int:
        return -(-rows // self._processes.world)

    def _into(self, x: Rows, blocks: list[Block]) -> Rows:
        blocks = self._mine(blocks)
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
