"""The text around each example: words and tokens, with the feature's activation at every aligned place that is shown.

A *word* is what ends at one pair: the characters from the end of the pair before it (or from the last white space) to
the place where the tokens of both models end. All examples of a shard are worked out at once.

Legend: N pairs of a shard, E examples, W places of a window (the example and `n_context` pairs on each side), C
characters of all texts, T tokens of one side of all texts, V values of all examples together.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from modeldiff.console import progress
from modeldiff.features.codes import Encoder, block_rows, by_shard
from modeldiff.features.examples import Examples
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import Block
from modeldiff.workspace.files import replace_into, temporary_path
from modeldiff.workspace.plan import ShardPlan

Ints = NDArray[np.int64]
Column = NDArray[np.generic]
_Types = dict[str, type[np.generic]]

FIXED: _Types = {"document": np.int64, "source": np.int32, "centre": np.int32, "tokens_differ": np.bool_}
"""Per example: the document's running number in the harvest, the index of its source, which of the words the example
is, and whether the two models' tokens there begin or end at other characters."""
_SPANS: _Types = {"start": np.int32, "end": np.int32, "activation": np.float32}
RAGGED: dict[str, _Types] = {"text": {"bytes": np.uint8}, "words": _SPANS, "tokens_a": _SPANS, "tokens_b": _SPANS}
"""Lists per example: UTF-8 of the window, and spans of it (characters). A token that ends at no pair has the activation
0."""
# Bounds on what is shown where pairs are far apart (a long stretch that the tokenizers do not share).
_CHARACTERS_PER_PLACE = 20
_MAX_WORD = 40
# Above it there is no white space.
_LAST_SPACE = 0x3000
# Values that are put in another order at once: the numbers of all would take more memory than the values.
_PART = 1 << 17


@dataclass(frozen=True)
class Ragged:
    """E lists of records, of different lengths."""

    offsets: Ints
    """(E + 1,): list i is offsets[i] to offsets[i + 1]."""
    columns: dict[str, Column]
    """The records' fields, each (V,)."""

    @classmethod
    def of(cls, lengths: Ints, columns: dict[str, Column], dtypes: _Types) -> Ragged:
        """From the lengths of the lists and their values, one list after the other."""
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return cls(offsets, {name: columns[name].astype(dtype, copy=False) for name, dtype in dtypes.items()})

    @classmethod
    def from_flat(cls, flat: dict[str, Column], name: str) -> Ragged:
        offsets = flat[f"{name}/offsets"].astype(np.int64)
        return cls(offsets, {column: flat[f"{name}/{column}"] for column in RAGGED[name]})

    def flat(self, name: str) -> dict[str, Column]:
        """For a file: `name/offsets`, and `name/column` of each column."""
        return {f"{name}/offsets": self.offsets} | {f"{name}/{column}": one for column, one in self.columns.items()}

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        return cls(np.concatenate([[0], np.cumsum(lengths)]), columns)

    def row(self, index: int) -> dict[str, Column]:
        return {name: column[self.offsets[index] : self.offsets[index + 1]] for name, column in self.columns.items()}

    def take(self, order: Ints) -> Ragged:
        """The lists numbered `order`, in that order."""
        starts, stops = self.offsets[:-1][order], self.offsets[1:][order]
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        taken = {name: np.empty(offsets[-1], column.dtype) for name, column in self.columns.items()}
        parts = np.searchsorted(offsets, np.arange(0, offsets[-1], _PART), side="right") - 1
        for low, high in itertools.pairwise([*np.unique(parts), len(order)]):
            _, index = ranges(starts[low:high], stops[low:high])
            for name, column in self.columns.items():
                taken[name][offsets[low] : offsets[high]] = column[index]
        return Ragged(offsets, taken)


def ranges(start_E: Ints, stop_E: Ints) -> tuple[Ints, Ints]:
    """(index of the range (V,), number (V,)) of all numbers of the ranges start to stop, one range after the other."""
    first_E = np.cumsum(stop_E - start_E) - (stop_E - start_E)
    total = int(first_E[-1] + stop_E[-1] - start_E[-1]) if len(start_E) else 0
    # A range's index is how many ranges began before: several times as fast as repeating each.
    index_V = np.cumsum(np.bincount(first_E, minlength=total + 1)[:total]) - 1
    return index_V, np.arange(total) + (start_E - first_E)[index_V]


def gather(encoder: Encoder, examples: Examples, n_context: int, resume: Path) -> dict[str, Column]:
    """What surrounds all examples, in their order: the columns of FIXED and, flat, the lists of RAGGED.

    Blocks that hold examples or their neighbours are encoded a second time. A window ends where its document or its
    shard ends. Each shard's part is kept in `resume`, so that an interrupted run goes on behind it.
    """
    store = encoder.store
    blocks = by_shard(store.blocks(block_rows(encoder.crosscoder.n_features)), len(store.info.shards))
    by_row = np.argsort(examples.row, kind="stable")
    borders = np.searchsorted(examples.row[by_row], store.first_row)
    resume.mkdir(exist_ok=True)
    parts: list[dict[str, Column]] = []
    with progress("features: examples in context", len(examples), "examples") as bar:
        for shard in range(len(store.info.shards)):
            path = resume / f"{shard:05d}.safetensors"
            here = by_row[borders[shard] : borders[shard + 1]]
            if not path.exists():
                pair_E = examples.row[here] - store.first_row[shard]
                window_EW = _windows(encoder, blocks[shard], pair_E, examples.feature[here], n_context)
                temporary = temporary_path(path)
                save_file(Surroundings(store.plan(shard), n_context).of(pair_E, window_EW), temporary)
                replace_into(temporary, path)
            parts.append(load_file(path))
            bar.advance(len(here))
    order = np.argsort(by_row, kind="stable")
    flat = {name: np.concatenate([part[name] for part in parts])[order] for name in FIXED}
    for name in RAGGED:
        flat |= Ragged.joined([Ragged.from_flat(part, name) for part in parts]).take(order).flat(name)
    return flat


def _windows(
    encoder: Encoder, blocks: list[Block], pair_E: Ints, feature_E: Ints, n_context: int
) -> NDArray[np.float32]:
    """(E, W) activations of each example's feature on the pairs around it; `pair_E` ascends. 0 outside the shard."""
    offsets_W = np.arange(-n_context, n_context + 1)
    window_EW = np.zeros((len(pair_E), len(offsets_W)), np.float32)
    for block in blocks:
        near = slice(*np.searchsorted(pair_E, (block.start - n_context, block.stop + n_context)))
        if near.start == near.stop:
            continue
        pair_EW = pair_E[near, None] + offsets_W
        inside = (pair_EW >= block.start) & (pair_EW < block.stop)
        found = encoder.at(block, feature_E[near], np.where(inside, pair_EW - block.start, -1))
        window_EW[near][inside] = found[inside]
    return window_EW


class Surroundings:
    """Text, words and tokens around the pairs of one shard, `n_context` pairs on each side of an example."""

    def __init__(self, plan: ShardPlan, n_context: int = 0) -> None:
        self._documents = plan.documents
        self._n_context = n_context
        self._document_N = plan.pairs.document.astype(np.int64)
        self._end_N = plan.pairs.char_end.astype(np.int64)
        of_document = np.searchsorted(self._document_N, np.arange(len(plan.documents) + 1))
        self._first_N, self._behind_N = of_document[self._document_N], of_document[self._document_N + 1]
        self._tokens = {side: _FlatTokens(plan, side) for side in SIDES}
        texts = [document.text for document in plan.documents]
        code_C = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        self._offset = np.cumsum([0, *map(len, texts)])
        self._space_C = _spaces()[np.minimum(code_C, _LAST_SPACE + 1)]
        self.start_N = self._word_starts()
        """(N,) the character of its text at which the word that ends at each pair begins."""

    def of(self, pair_E: Ints, window_EW: NDArray[np.float32]) -> dict[str, Column]:
        """What surrounds examples at these pairs, with the activations in the windows around; see `gather`."""
        low_E, high_E = self._shown(pair_E)
        document_E = self._document_N[pair_E]
        begin_E, stop_E = self.start_N[low_E], self._end_N[high_E - 1]
        example_V, pair_V = ranges(low_E, high_E)
        activation_V = window_EW[example_V, pair_V - pair_E[example_V] + self._n_context]
        words: dict[str, Column] = {
            "start": self.start_N[pair_V] - begin_E[example_V],
            "end": self._end_N[pair_V] - begin_E[example_V],
            "activation": activation_V,
        }
        ragged = {
            "text": self._texts(document_E, begin_E, stop_E),
            "words": Ragged.of(high_E - low_E, words, _SPANS),
        }
        for side, tokens in self._tokens.items():
            ragged[f"tokens_{side}"] = tokens.shown(low_E, high_E, begin_E, stop_E, pair_V, example_V, activation_V)
        documents = [self._documents[i] for i in document_E.tolist()]
        fixed = {
            "document": [document.index for document in documents],
            "source": [document.source for document in documents],
            "centre": pair_E - low_E,
            "tokens_differ": self.tokens_differ(pair_E),
        }
        flat = {name: np.asarray(fixed[name], dtype) for name, dtype in FIXED.items()}
        for name, lists in ragged.items():
            flat |= lists.flat(name)
        return flat

    def tokens_differ(self, pair_E: Ints) -> NDArray[np.bool_]:
        """(E,) whether the two models' tokens at these pairs begin or end at other characters.

        White space at either end of a token does not count.
        """
        base_E = self._offset[self._document_N[pair_E]]
        # Two places differ by white space alone when as many visible characters are before them.
        visible_C = np.concatenate([[0], np.cumsum(~self._space_C)])
        bounds = [tokens.bounds(pair_E) for tokens in self._tokens.values()]
        a, b = (np.where(one >= 0, visible_C[base_E + np.maximum(one, 0)], -1) for one in bounds)
        return (a != b).any(axis=0)

    def _word_starts(self) -> Ints:
        offset, space_C = self._offset, self._space_C
        place_C, none = np.arange(len(space_C)), len(space_C)
        # The first character from each on that is no white space; the last one before each that is.
        solid_C = np.minimum.accumulate(np.where(space_C, none, place_C)[::-1])[::-1]
        blank_C = np.maximum.accumulate(np.where(space_C, place_C, -1))
        solid_C, blank_C = np.append(solid_C, none), np.concatenate([[-1], blank_C])

        base_N = offset[self._document_N]
        end_N = base_N + self._end_N
        before_N = np.concatenate([[0], end_N[:-1]])
        floor_N = np.where(np.arange(len(end_N)) == self._first_N, base_N, before_N)
        start_N = np.full(len(end_N), np.iinfo(np.int64).max)
        for tokens in self._tokens.values():
            one_N = tokens.bounds(slice(None))[0]
            usable = (one_N >= 0) & (one_N <= self._end_N)
            start_N = np.where(usable, np.minimum(start_N, base_N + one_N), start_N)
        start_N = np.maximum(floor_N, np.minimum(start_N, end_N))
        # Many tokens begin with the blank before the word.
        start_N = np.maximum(start_N, np.minimum(solid_C[start_N], end_N - 1))
        reach_N = np.maximum(floor_N, np.maximum(end_N - _MAX_WORD, blank_C[start_N] + 1))
        return np.minimum(start_N, reach_N) - base_N

    def _shown(self, pair_E: Ints) -> tuple[Ints, Ints]:
        """First and behind-the-last pair of each window."""
        low_E = np.maximum(self._first_N[pair_E], pair_E - self._n_context)
        high_E = np.minimum(self._behind_N[pair_E], pair_E + self._n_context + 1)
        end_E, reach = self._end_N[pair_E], _CHARACTERS_PER_PLACE * self._n_context
        while (far := (low_E < pair_E) & (end_E - self.start_N[low_E] > reach)).any():
            low_E[far] += 1
        while (far := (high_E - 1 > pair_E) & (self._end_N[high_E - 1] - end_E > reach)).any():
            high_E[far] -= 1
        return low_E, high_E

    def _texts(self, document_E: Ints, begin_E: Ints, stop_E: Ints) -> Ragged:
        texts = [
            self._documents[document].text[begin:stop].encode("utf-8", "surrogatepass")
            for document, begin, stop in zip(document_E.tolist(), begin_E.tolist(), stop_E.tolist(), strict=True)
        ]
        lengths = np.array([len(text) for text in texts], np.int64)
        return Ragged.of(lengths, {"bytes": np.frombuffer(b"".join(texts), np.uint8)}, RAGGED["text"])


class _FlatTokens:
    def __init__(self, plan: ShardPlan, side: str) -> None:
        tokens = [document.tokens[side] for document in plan.documents]
        offset = np.cumsum([0, *(len(one.ids) for one in tokens)])
        empty = np.zeros(0, np.int64)
        self._start_T = np.concatenate([empty, *(one.starts for one in tokens)])
        self._end_T = np.concatenate([empty, *(one.ends for one in tokens)])
        self._first_N = offset[plan.pairs.document]
        self._at_N: Ints = self._first_N + plan.pairs.token[side].astype(np.int64)

    def bounds(self, pair_E: Ints | slice) -> Ints:
        """(2, E) characters of its text at which the token of each of these pairs starts and ends; -1: it is not part
        of the text."""
        at_E = self._at_N[pair_E]
        return np.stack([self._start_T[at_E], self._end_T[at_E]])

    def shown(
        self,
        low_E: Ints,
        high_E: Ints,
        begin_E: Ints,
        stop_E: Ints,
        pair_V: Ints,
        of_V: Ints,
        activation_V: NDArray[np.float32],
    ) -> Ragged:
        """The tokens inside windows, cut at their borders; `pair_V`, `of_V`, `activation_V`: the pairs of all windows
        one after the other, the example of each, activations."""
        first_E, behind_E = self._at_N[low_E], self._at_N[high_E - 1] + 1
        document_first_E = self._first_N[low_E]
        while True:
            before_E = np.maximum(first_E - 1, 0)
            reaches = (self._end_T[before_E] > begin_E) & (self._start_T[before_E] >= 0) & (first_E > document_first_E)
            if not reaches.any():
                break
            first_E[reaches] -= 1
        example_V, token_V = ranges(first_E, behind_E)
        value_V = np.zeros(len(token_V), np.float32)
        base_E = np.cumsum(behind_E - first_E) - (behind_E - first_E)
        value_V[(base_E - first_E)[of_V] + self._at_N[pair_V]] = activation_V
        inside_V = self._start_T[token_V] >= 0
        example_V, token_V, value_V = example_V[inside_V], token_V[inside_V], value_V[inside_V]
        begin_V = begin_E[example_V]
        columns: dict[str, Column] = {
            "start": np.maximum(self._start_T[token_V], begin_V) - begin_V,
            "end": np.minimum(self._end_T[token_V], stop_E[example_V]) - begin_V,
            "activation": value_V,
        }
        return Ragged.of(np.bincount(example_V, minlength=len(low_E)), columns, _SPANS)


@functools.cache
def _spaces() -> NDArray[np.bool_]:
    """By code point, whether it is white space; the last entry stands for all above."""
    return np.array([*(chr(code).isspace() for code in range(_LAST_SPACE + 1)), False])
