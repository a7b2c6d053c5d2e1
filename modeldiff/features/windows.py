"""Windows of text as both models read them, with the rows of their pairs: a sample of them, padded for a model.

A harvest never splits a window over two shards, so a document of a shard's plan is a whole window.

Legend: T tokens of a window, R pairs of a window, B windows of a batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.errors import InputError
from modeldiff.lm.batches import padded
from modeldiff.sides import SIDES
from modeldiff.splits import evenly_spread, spread_blocks
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.plan import ShardPlan

# A plan file is read whole: with more shards than this only some are read, if they hold enough pairs.
_MOST_SHARDS = 64


@dataclass(frozen=True)
class Window:
    """One text of the store. Its pairs are consecutive rows."""

    rows: Block
    """Where the activations of its R pairs are."""
    ids: dict[str, NDArray[np.int64]]
    """By side: token ids (T,), special tokens included."""
    token: dict[str, NDArray[np.int64]]
    """By side: which tokens the pairs are at, (R,)."""


def sample_windows(store: ActivationStore, pairs: int) -> list[Window]:
    """Windows that hold about `pairs` pairs together, spread evenly over the store; all when it has no more.

    Raises:
        InputError: the activations were imported without texts, or without token ids.
    """
    windows: list[Window] = []
    chosen = spread_shards(store.info.shards, pairs)
    share = min(1.0, pairs / sum(store.info.shards[shard] for shard in chosen))
    for shard in chosen:
        plan = store.plan(shard)
        first = np.searchsorted(plan.pairs.document, np.arange(len(plan.documents) + 1)).tolist()
        rows = [Block(shard, start, stop) for start, stop in itertools.pairwise(first) if start < stop]
        windows += [
            _window(store, plan, block) for block in spread_blocks(rows, max(1, round(share * len(plan.pairs))))
        ]
    return windows


def padded_windows(windows: Sequence[Window], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BT, mask_BT) for the model of a side, padded on the right."""
    return padded([torch.from_numpy(window.ids[side]) for window in windows])


def spread_shards(shards: list[int], pairs: int) -> list[int]:
    """Shards, evenly spaced, that hold `pairs` pairs if all together do."""
    enough = math.ceil(pairs * len(shards) / sum(shards))
    count = min(len(shards), max(_MOST_SHARDS, enough))
    return evenly_spread(len(shards), count)


def _window(store: ActivationStore, plan: ShardPlan, rows: Block) -> Window:
    document = plan.documents[plan.pairs.document[rows.start]]
    # Copies: a view would keep the whole plan in memory.
    ids = {side: document.tokens[side].ids.astype(np.int64) for side in SIDES}
    token = {side: plan.pairs.token[side][rows.start : rows.stop].astype(np.int64) for side in SIDES}
    if any((ids[side] < 0).any() for side in SIDES):
        raise InputError(
            f"{store.artifact.ref} was imported without token ids: this needs them; give ids_a and ids_b in the "
            "file of --import-texts, or harvest the activations with modeldiff"
        )
    return Window(rows, ids, token)
