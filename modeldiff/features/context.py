"""The text around each example, with the feature's activation at every aligned place that is shown.

Legend: E examples of a shard, W places of a window (the example and `n_context` pairs on each side).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from modeldiff.console import progress
from modeldiff.features.codes import Encoder, block_rows, by_shard
from modeldiff.features.examples import Examples
from modeldiff.features.ragged import Column, Ragged
from modeldiff.features.surroundings import FIXED, SPANS, Surroundings
from modeldiff.workspace.activations import Block
from modeldiff.workspace.files import replace_into, temporary_path

RAGGED = ("text", "words", "tokens_a", "tokens_b")
COLUMNS = {name: ("bytes",) if name == "text" else tuple(SPANS) for name in RAGGED}


@dataclass(frozen=True)
class Contexts:
    """The surroundings of some examples.

    Attributes:
        fixed: one value per example: `document` (running number in the harvest), `source` (index of the label),
            `centre` (which of the words the example is), `tokens_differ` (whether the two models' tokens there begin or
            end at other characters).
        ragged: per example `text` (`bytes`: UTF-8 of the window), and spans with `start`, `end` (characters in the
            window) and `activation`: `words`, `tokens_a`, `tokens_b`. A token that ends at no pair has the activation
            0.
    """

    fixed: dict[str, Column]
    ragged: dict[str, Ragged]

    @classmethod
    def none(cls) -> Contexts:
        """Of no example."""
        fixed = {name: np.zeros(0, dtype) for name, dtype in FIXED.items()}
        return cls(fixed, {name: Ragged.of([], {"bytes": np.uint8} if name == "text" else SPANS) for name in RAGGED})

    @classmethod
    def joined(cls, parts: list[Contexts]) -> Contexts:
        fixed = {name: np.concatenate([part.fixed[name] for part in parts]) for name in FIXED}
        return cls(fixed, {name: Ragged.joined([part.ragged[name] for part in parts]) for name in RAGGED})

    def take(self, order: NDArray[np.int64]) -> Contexts:
        fixed = {name: column[order] for name, column in self.fixed.items()}
        return Contexts(fixed, {name: ragged.take(order) for name, ragged in self.ragged.items()})

    def arrays(self) -> dict[str, Column]:
        """Flat, for a file: `text/offsets`, `text/bytes`, `words/start`, ..."""
        flat = dict(self.fixed)
        for name, ragged in self.ragged.items():
            flat[f"{name}/offsets"] = ragged.offsets
            flat |= {f"{name}/{column}": values for column, values in ragged.columns.items()}
        return flat

    @classmethod
    def from_arrays(cls, flat: dict[str, Column]) -> Contexts:
        ragged = {}
        for name in RAGGED:
            offsets = flat[f"{name}/offsets"].astype(np.int64)
            ragged[name] = Ragged(offsets, {column: flat[f"{name}/{column}"] for column in COLUMNS[name]})
        return cls({name: flat[name] for name in FIXED}, ragged)


def gather(encoder: Encoder, examples: Examples, n_context: int, resume: Path) -> Contexts:
    """Contexts of all examples, in their order.

    Blocks that hold examples or their neighbours are encoded a second time. A window ends where its document or its
    shard ends. Each shard's part is kept in `resume`, so that an interrupted run goes on behind it.
    """
    store = encoder.store
    blocks = by_shard(store.blocks(block_rows(encoder.crosscoder.n_features)), len(store.info.shards))
    by_row = np.argsort(examples.row, kind="stable")
    borders = np.searchsorted(examples.row[by_row], store.first_row)
    resume.mkdir(exist_ok=True)
    parts = []
    with progress("features: examples in context", len(examples), "examples") as bar:
        for shard in range(len(store.info.shards)):
            path = resume / f"{shard:05d}.safetensors"
            here = by_row[borders[shard] : borders[shard + 1]]
            if not path.exists():
                pair_E = examples.row[here] - store.first_row[shard]
                part = _shard_contexts(encoder, blocks[shard], pair_E, examples.feature[here], n_context)
                temporary = temporary_path(path)
                save_file(part.arrays(), temporary)
                replace_into(temporary, path)
            parts.append(Contexts.from_arrays(load_file(path)))
            bar.advance(len(here))
    return Contexts.joined(parts).take(np.argsort(by_row, kind="stable"))


def _shard_contexts(
    encoder: Encoder, blocks: list[Block], pair_E: NDArray[np.int64], feature_E: NDArray[np.int64], n_context: int
) -> Contexts:
    if not len(pair_E):
        return Contexts.none()
    plan = encoder.store.plan(blocks[0].shard)
    window_EW = _windows(encoder, blocks, pair_E, feature_E, n_context)
    return Contexts(*Surroundings(plan, n_context).of(pair_E, window_EW))


def _windows(
    encoder: Encoder, blocks: list[Block], pair_E: NDArray[np.int64], feature_E: NDArray[np.int64], n_context: int
) -> NDArray[np.float32]:
    """(E, W) activations of each example's feature on the pairs around it; `pair_E` ascends. 0 outside the shard."""
    offsets_W = np.arange(-n_context, n_context + 1)
    window_EW = np.zeros((len(pair_E), len(offsets_W)), np.float32)
    for block in blocks:
        near = slice(*np.searchsorted(pair_E, (block.start - n_context, block.stop + n_context)))
        if near.start == near.stop:
            continue
        place = pair_E[near, None] + offsets_W
        inside = (place >= block.start) & (place < block.stop)
        found = encoder.at(block, feature_E[near], np.where(inside, place - block.start, -1))
        window_EW[near][inside] = found[inside]
    return window_EW
