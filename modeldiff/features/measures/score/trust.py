"""How far the stitch can be trusted where a feature is active: R² of the map on held-out pairs on which it fires."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modeldiff.features.codes import Encoder, block_rows
from modeldiff.features.measures.score.result import ScoreRow
from modeldiff.linear.stitch import Stitch
from modeldiff.splits import PARTS, Stretches, evenly_spread
from modeldiff.workspace.activations import ActivationStore, Block

# Held-out pairs that are read for this, at most: a bounded time, whatever the size of the harvest.
_MOST_PAIRS = 20_000
# R² on fewer pairs says more about them than about the map.
_FEWEST_PAIRS = 20


def with_stitch_r2(rows: Sequence[ScoreRow], stitch: Stitch, encoder: Encoder) -> list[ScoreRow]:
    """The rows with `stitch_r2` and `active_pairs`; random directions have none.

    Raises:
        DamagedError: the activations cannot be read.
    """
    features = sorted({row.number for row in rows if row.partition != "random"})
    stretches = _bounded(stitch.stretches)
    active = _active_rows(encoder, stretches.ranges("report"), features)
    limited = dataclasses.replace(stitch, stretches=stretches)
    found = dict(zip(features, limited.r2_on(encoder.store, [active[i] for i in features]), strict=True))

    def filled(row: ScoreRow) -> ScoreRow:
        if row.partition == "random":
            return row
        subset = found[row.number]
        r2 = subset.a_to_b if row.source == "A" else subset.b_to_a
        return dataclasses.replace(
            row, stitch_r2=r2 if subset.pairs >= _FEWEST_PAIRS else None, active_pairs=subset.pairs
        )

    return [filled(row) for row in rows]


def _bounded(stretches: Stretches) -> Stretches:
    """The stretches that are reported on, evenly thinned out to at most about _MOST_PAIRS rows."""
    ranges = stretches.ranges("report")
    total = sum(stop - first for first, stop in ranges)
    wanted = max(1, min(len(ranges), len(ranges) * _MOST_PAIRS // max(1, total)))
    chosen = [ranges[i] for i in evenly_spread(len(ranges), wanted)]
    share = max(1, _MOST_PAIRS // wanted)  # a single long one may hold more
    first_S = np.array([first for first, _ in chosen], np.int64)
    stop_S = np.array([min(stop, first + share) if total > _MOST_PAIRS else stop for first, stop in chosen], np.int64)
    return Stretches(first_S, stop_S, np.full(len(chosen), PARTS.index("report"), np.int64))


def _active_rows(
    encoder: Encoder, ranges: Sequence[tuple[int, int]], features: Sequence[int]
) -> dict[int, NDArray[np.int64]]:
    """Rows of the store, out of the ranges, on which each feature fires."""
    found: dict[int, list[NDArray[np.int64]]] = {feature: [] for feature in features}
    for first, stop in ranges:
        for block in _blocks(encoder.store, first, stop, block_rows(encoder.crosscoder.n_features)):
            f_BF = encoder.dense(block)[0].cpu().numpy()
            row = encoder.store.first_row[block.shard] + block.start
            for feature in features:
                found[feature].append(row + np.flatnonzero(f_BF[:, feature]))
    return {feature: np.concatenate([np.zeros(0, np.int64), *parts]) for feature, parts in found.items()}


def _blocks(store: ActivationStore, first: int, stop: int, rows: int) -> list[Block]:
    """Rows `first` to `stop` of the whole store as blocks, none across shards."""
    blocks = []
    while first < stop:
        shard = int(np.searchsorted(store.first_row, first, side="right")) - 1
        start = store.first_row[shard]
        end = min(stop, first + rows, store.first_row[shard + 1])
        blocks.append(Block(shard, first - start, end - start))
        first = end
    return blocks
