"""Which pairs are read, and which of them are fitted on, choose the regularisation, or are reported on.

Neighbouring tokens resemble each other: were one fitted on and the next one reported on, R² would come out too high. So
whole stretches go to one part. They end where a document ends if one does soon; where a stretch has to end inside a
document and the part changes, a gap of unused pairs lies between the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from modeldiff.errors import InputError
from modeldiff.linear.stitch import PARTS, Stretches
from modeldiff.splits import evenly_spread
from modeldiff.workspace.activations import ActivationStore, Block

_BLOCK_ROWS = 1024
# A few pairs are still read from all over the activations.
_LEAST_BLOCKS = 16
# A stretch has this many pairs and at most twice as many; fewer where there would be too few stretches.
_STRETCH, _LEAST_STRETCHES = 512, 50
# Tokens of a text that lie further apart than this share little but the topic.
_GAP = 64
# The parts of ten stretches, over and over.
_CYCLE = [PARTS.index({4: "choose", 9: "report"}.get(number, "fit")) for number in range(10)]


def sample(store: ActivationStore, pairs: int) -> list[Block]:
    """Blocks of at most `pairs` pairs together, spread evenly; all blocks if there are not more."""
    rows = _BLOCK_ROWS if pairs >= store.pairs else min(_BLOCK_ROWS, pairs // _LEAST_BLOCKS)
    blocks = store.blocks(rows)
    if pairs >= store.pairs:
        return blocks
    wanted = pairs // rows
    return [blocks[i] for i in evenly_spread(len(blocks), wanted)]


def split(store: ActivationStore, blocks: Sequence[Block]) -> Stretches:
    """The rows of the blocks in stretches, each of one part.

    Raises:
        InputError: there are too few pairs for every part to get some.
        DamagedError: the plan of a shard cannot be read.
    """
    total = sum(map(len, blocks))
    length = max(1, min(_STRETCH, total // _LEAST_STRETCHES))
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
    if len({part for _, _, part in found}) < len(PARTS):
        raise InputError(
            f"{store.artifact.ref}: {total} pairs are too few to fit, choose and report on different ones: harvest more"
        )
    return Stretches(*np.array(found, np.int64).T)


def document_starts(store: ActivationStore, blocks: Sequence[Block]) -> NDArray[np.int64]:
    """The rows of the blocks at which another document begins, ascending; none where there are no texts."""
    if not store.info.has_texts:
        return np.zeros(0, np.int64)
    starts, before, shard, document_N = [], -1, -1, np.zeros(0, np.int64)
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


def _runs(store: ActivationStore, blocks: Sequence[Block]) -> Iterator[tuple[int, int]]:
    """(first, stop) rows of the store of blocks that follow each other."""
    first = stop = -1
    for block in blocks:
        start = store.first_row[block.shard] + block.start
        if start != stop:
            if stop > first:
                yield first, stop
            first = start
        stop = start + len(block)
    if stop > first:
        yield first, stop
