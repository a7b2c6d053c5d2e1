"""Which of many things in order are read, and which pairs are held out: one definition for all stages.

Neighbouring tokens resemble each other: were one fitted on and the next one reported on, R² would come out too high. So
whole stretches of pairs go to one part. They end where a document ends if one does soon; where a stretch has to end
inside a document and the part changes, a gap of unused pairs lies between the two.

Legend: N rows (pairs) of an activation store, S stretches of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modeldiff.errors import InputError
from modeldiff.workspace.bits import chunk_rows

if TYPE_CHECKING:
    from modeldiff.workspace.activations import ActivationStore, Block

PARTS = ("fit", "choose", "report")
"""What pairs are for: fitting, choosing a regularisation, and the numbers that are reported. Where nothing is chosen,
the last two are both held out."""
# The parts of ten stretches, over and over.
_CYCLE = [PARTS.index({4: "choose", 9: "report"}.get(number, "fit")) for number in range(10)]
# A stretch has this many pairs and at most twice as many; fewer where there would be too few stretches.
_STRETCH, _LEAST_STRETCHES = 512, 50
# Tokens of a text that lie further apart than this share little but the topic.
_GAP = 64
# Training has enough blocks that a few per cent of them are spread over the whole harvest.
_LEAST_BLOCKS = 64


def evenly_spread(total: int, count: int) -> list[int]:
    """Indices, ascending, of `count` of `total` things in order: the middle of each of as many equal shares; all of
    them where `count` is not less than `total`."""
    if count >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def spread_blocks(blocks: Sequence[Block], pairs: int | None) -> list[Block]:
    """Blocks that hold about `pairs` pairs together, spread evenly over all; every block when `pairs` is None."""
    total = sum(len(block) for block in blocks)
    if pairs is None or pairs >= total:
        return list(blocks)
    wanted = max(1, round(len(blocks) * pairs / total))
    return [blocks[i] for i in evenly_spread(len(blocks), wanted)]


@dataclass(frozen=True)
class Stretches:
    """Ranges of rows of the activations, ascending, each for one purpose. Rows outside of them are not used."""

    first_S: NDArray[np.int64]
    stop_S: NDArray[np.int64]
    part_S: NDArray[np.int64]
    """Index into PARTS."""

    def ranges(self, part: str) -> list[tuple[int, int]]:
        """(first, stop) of the stretches of a part."""
        mine_S = self.part_S == PARTS.index(part)
        return list(zip(self.first_S[mine_S].tolist(), self.stop_S[mine_S].tolist(), strict=True))

    def rows(self, part: str) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(*one) for one in self.ranges(part))])

    def part_of(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) the part of each row, -1 for those that are not used."""
        if not len(self.first_S):
            return np.full(len(rows_N), -1)
        at_N = np.searchsorted(self.first_S, rows_N, side="right") - 1
        inside_N = (at_N >= 0) & (rows_N < self.stop_S[at_N])
        return np.where(inside_N, self.part_S[at_N], -1)


def split(store: ActivationStore, blocks: Sequence[Block]) -> Stretches:
    """The rows of the blocks in stretches, each of one part. Without texts, stretches end anywhere, with gaps. Raises
    DamagedError: the plan of a shard cannot be read."""
    length = max(1, min(_STRETCH, sum(map(len, blocks)) // _LEAST_STRETCHES))
    gap = min(_GAP, length // 4)
    starts = document_starts(store, blocks)
    borders = set(starts.tolist())
    found: list[tuple[int, int, int]] = []
    number, before = 0, -1
    for first, stop in _runs(store, blocks):
        for start, end in cut(first, stop, starts, length):
            part = _CYCLE[number % len(_CYCLE)]
            inside = start != first and start not in borders
            begin = start + gap if inside and part != before else start
            if begin < end:
                found.append((begin, end, part))
            number, before = number + 1, part
    return Stretches(*np.array(found, np.int64).reshape(-1, 3).T)


def document_starts(store: ActivationStore, blocks: Sequence[Block]) -> NDArray[np.int64]:
    """The rows of the blocks at which another document begins, ascending; none where there are no texts."""
    if not store.info.has_texts:
        return np.zeros(0, np.int64)
    starts, before, shard, document_N = [np.zeros(0, np.int64)], -1, -1, np.zeros(0, np.int64)
    for block in blocks:
        if block.shard != shard:
            shard, plan = block.shard, store.plan(block.shard)
            document_N = np.array([one.index for one in plan.documents], np.int64)[plan.pairs.document]
        here = document_N[block.start : block.stop]
        changes = np.flatnonzero(np.diff(here, prepend=before))
        starts.append(store.first_row[block.shard] + block.start + changes)
        before = int(here[-1])
    return np.concatenate(starts).astype(np.int64)


def cut(first: int, stop: int, starts: NDArray[np.int64], length: int) -> Iterator[tuple[int, int]]:
    """Cut the rows first..stop into stretches: at the first document that starts after `length` rows, at the latest
    after twice as many."""
    while first < stop:
        end = min(stop, first + 2 * length)
        at = int(np.searchsorted(starts, first + length))
        if at < len(starts):
            end = min(end, int(starts[at]))
        yield first, end
        first = end


def _runs(store: ActivationStore, blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """(first, stop) rows of the store of blocks that follow each other."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        first = store.first_row[block.shard] + block.start
        if runs and runs[-1][1] == first:
            first, _ = runs.pop()
        runs.append((first, store.first_row[block.shard] + block.stop))
    return runs


def hold_out_blocks(store: ActivationStore, holdout: float) -> tuple[list[Block], list[Block]]:
    """(blocks to train on, blocks held out), the latter evenly spaced and about a share `holdout` of all. Raises
    InputError: there are too few pairs for both."""
    rows = min(chunk_rows(side.width, side.encoding) for side in store.info.sides.values())
    rows = min(rows, 1 << max(0, (store.pairs // _LEAST_BLOCKS).bit_length() - 1))
    blocks = store.blocks(rows)
    count = max(1, round(holdout * len(blocks)))
    if count >= len(blocks):
        raise InputError(
            f"{store.artifact.ref} has {store.pairs} pairs, too few to hold out {holdout:.0%} of them: harvest more"
        )
    held = set(evenly_spread(len(blocks), count))
    return [b for i, b in enumerate(blocks) if i not in held], [blocks[i] for i in sorted(held)]
