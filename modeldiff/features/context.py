"""The text around each example, with the feature's activation at every aligned place that is shown.

A *word* here is what ends at one pair: the characters from the end of the pair before it (or from the last white
space) to the place where the tokens of both models end.

Legend: E examples of a shard, W places of a window (the example and `n_context` pairs on each side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from modeldiff.console import progress
from modeldiff.features.codes import Encoder, block_rows, by_shard
from modeldiff.features.examples import Examples
from modeldiff.features.ragged import Column, Ragged
from modeldiff.workspace.activations import Block
from modeldiff.workspace.files import replace_into, temporary_path
from modeldiff.workspace.plan import SIDES, Document, PairTable, ShardPlan

# Bounds on what is shown where pairs are far apart (a long stretch that the tokenizers do not share).
_CHARACTERS_PER_PLACE = 20
_MAX_WORD = 40
_SPANS: dict[str, type[np.generic]] = {"start": np.int32, "end": np.int32, "activation": np.float32}
_FIXED: dict[str, type[np.generic]] = {"document": np.int64, "source": np.int32, "centre": np.int32}
RAGGED = ("text", "words", "tokens_a", "tokens_b")
COLUMNS = {name: ("bytes",) if name == "text" else tuple(_SPANS) for name in RAGGED}


@dataclass(frozen=True)
class Contexts:
    """The surroundings of some examples.

    Attributes:
        fixed: one value per example: `document` (running number in the harvest), `source` (index of the label),
            `centre` (which of the words the example is).
        ragged: per example `text` (`bytes`: UTF-8 of the window), and spans with `start`, `end` (characters in the
            window) and `activation`: `words`, `tokens_a`, `tokens_b`. A token that ends at no pair has the activation
            0.
    """

    fixed: dict[str, Column]
    ragged: dict[str, Ragged]

    @classmethod
    def joined(cls, parts: list[Contexts]) -> Contexts:
        fixed = {name: np.concatenate([part.fixed[name] for part in parts]) for name in _FIXED}
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
        return cls({name: flat[name] for name in _FIXED}, ragged)


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
    window_EW = _windows(encoder, blocks, pair_E, feature_E, n_context)
    describe = _Describer(encoder.store.plan(blocks[0].shard), n_context) if len(pair_E) else None
    rows = (
        [describe.example(int(pair), window) for pair, window in zip(pair_E, window_EW, strict=True)]
        if describe
        else []
    )
    fixed = {name: np.array([row[0][name] for row in rows], dtype) for name, dtype in _FIXED.items()}
    ragged = {
        name: Ragged.of([row[1][name] for row in rows], {"bytes": np.uint8} if name == "text" else _SPANS)
        for name in RAGGED
    }
    return Contexts(fixed, ragged)


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
        f_BF, _ = encoder.dense(block)
        place = pair_E[near, None] + offsets_W
        inside = (place >= block.start) & (place < block.stop)
        row = torch.from_numpy(place[inside] - block.start).to(f_BF.device)
        feature = torch.from_numpy(np.broadcast_to(feature_E[near, None], place.shape)[inside]).to(f_BF.device)
        window_EW[near][inside] = f_BF[row, feature].float().cpu().numpy()
    return window_EW


def word_start(documents: Sequence[Document], pairs: PairTable, pair: int, *, first: bool) -> int:
    """Character at which the word that ends at `pair` begins; `first`: no pair of its document is before it."""
    document = documents[pairs.document[pair]]
    end = int(pairs.char_end[pair])
    floor = 0 if first else int(pairs.char_end[pair - 1])
    starts = [int(document.tokens[side].starts[pairs.token[side][pair]]) for side in SIDES]
    start = max(floor, min((s for s in starts if 0 <= s <= end), default=end))
    while start < end - 1 and document.text[start].isspace():  # many tokens begin with the blank before the word
        start += 1
    while start > floor and end - start < _MAX_WORD and not document.text[start - 1].isspace():
        start -= 1
    return start


class _Describer:
    """Turns pairs of one shard into text windows."""

    def __init__(self, plan: ShardPlan, n_context: int) -> None:
        self._documents = plan.documents
        self._pairs = plan.pairs
        self._n_context = n_context
        changes = np.flatnonzero(np.diff(plan.pairs.document)) + 1
        self._borders = np.concatenate([[0], changes, [len(plan.pairs)]])
        self._firsts = set(self._borders.tolist())
        self._starts: dict[int, int] = {}

    def example(self, pair: int, window_W: NDArray[np.float32]) -> tuple[dict[str, int], dict[str, dict[str, Column]]]:
        """(fixed, ragged) of `Contexts` for the example at `pair`."""
        low, high = self._shown(pair)
        document = self._documents[self._pairs.document[pair]]
        activation = window_W[low - pair + self._n_context : high - pair + self._n_context]
        starts = np.array([self._word_start(j) for j in range(low, high)])
        ends = self._pairs.char_end[low:high]
        begin, end = int(starts[0]), int(ends[-1])
        text = document.text[begin:end].encode("utf-8", "surrogatepass")
        spans = {"words": {"start": starts - begin, "end": ends - begin, "activation": activation}}
        for side in SIDES:
            spans[f"tokens_{side}"] = self._tokens(side, low, high, begin, end, activation)
        fixed = {"document": document.index, "source": document.source, "centre": pair - low}
        return fixed, {"text": {"bytes": np.frombuffer(text, np.uint8)}, **spans}

    def _shown(self, pair: int) -> tuple[int, int]:
        """First and behind-the-last pair of the window."""
        run = int(np.searchsorted(self._borders, pair, side="right"))
        low = max(int(self._borders[run - 1]), pair - self._n_context)
        high = min(int(self._borders[run]), pair + self._n_context + 1)
        ends, reach = self._pairs.char_end, _CHARACTERS_PER_PLACE * self._n_context
        while low < pair and ends[pair] - self._word_start(low) > reach:
            low += 1
        while high - 1 > pair and ends[high - 1] - ends[pair] > reach:
            high -= 1
        return low, high

    def _word_start(self, pair: int) -> int:
        if pair not in self._starts:
            self._starts[pair] = word_start(self._documents, self._pairs, pair, first=pair in self._firsts)
        return self._starts[pair]

    def _tokens(
        self, side: str, low: int, high: int, begin: int, end: int, activation: NDArray[np.float32]
    ) -> dict[str, Column]:
        """One side's tokens inside the window, cut at its borders."""
        tokens = self._documents[self._pairs.document[low]].tokens[side]
        of_pairs = self._pairs.token[side][low:high]
        first, behind = int(of_pairs[0]), int(of_pairs[-1]) + 1
        while first > 0 and tokens.ends[first - 1] > begin and tokens.starts[first - 1] >= 0:
            first -= 1
        values = np.zeros(behind - first, np.float32)
        values[of_pairs - first] = activation
        starts, ends = tokens.starts[first:behind], tokens.ends[first:behind]
        inside = starts >= 0
        return {
            "start": np.maximum(starts[inside], begin) - begin,
            "end": np.minimum(ends[inside], end) - begin,
            "activation": values[inside],
        }
