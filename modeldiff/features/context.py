"""The text around each example: words and tokens, with the feature's activation at every aligned place that is shown.

A *word* is what ends at one pair: the characters from the end of the pair before it (or from the last white space) to
the place where the tokens of both models end. All examples of a shard are worked out at once.

Legend: N pairs of a shard, E examples, W places of a window (the example and `n_context` pairs on each side), C
characters of all texts, T tokens of one side of all texts, V values of all examples together.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from modeldiff.catalogue.example import FIXED, RAGGED
from modeldiff.catalogue.stored import Arrays, kept
from modeldiff.console import progress
from modeldiff.features.codes import Encoder, block_rows, by_shard
from modeldiff.features.examples import Examples
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import Block
from modeldiff.workspace.plan import ShardPlan
from modeldiff.workspace.ranks import Ranks

Ints = NDArray[np.int64]
# Bounds on what is shown where pairs are far apart (a long stretch that the tokenizers do not share).
_CHARACTERS_PER_PLACE = 20
_MAX_WORD = 40
# Values that are put in another order at once: the numbers of all would take more memory than the values.
_PART = 1 << 17


def _lists(name: str, length_E: Ints, fields: dict[str, NDArray[Any]]) -> Arrays:
    """E lists, from their lengths and the values of their fields, as arrays for a file."""
    offsets = np.concatenate([[0], np.cumsum(length_E)])
    typed = {f"{name}/{field}": fields[field].astype(dtype, copy=False) for field, dtype in RAGGED[name].items()}
    return {f"{name}/offsets": offsets, **typed}


def _ranges(start_E: Ints, stop_E: Ints) -> tuple[Ints, Ints]:
    """(index of the range (V,), number (V,)) of all numbers of the ranges start to stop, one range after the other."""
    length_E = stop_E - start_E
    first_E = np.cumsum(length_E) - length_E
    index_V = np.repeat(np.arange(len(start_E)), length_E)
    return index_V, np.arange(len(index_V)) + (start_E - first_E)[index_V]


def gather(encoder: Encoder, examples: Examples, n_context: int, resume: Path, ours: Ranks) -> Arrays:
    """What surrounds all examples, in their order: the arrays of FIXED and of RAGGED. Each process takes its share of
    the shards; the first one gets the result, the others nothing.

    Blocks that hold examples or their neighbours are encoded a second time. A window ends where its document or its
    shard ends. Each shard's part is kept in `resume`, so that an interrupted run goes on behind it.
    """
    store = encoder.store
    blocks = by_shard(store.blocks(block_rows(encoder.crosscoder.n_features)), len(store.info.shards))
    by_row = np.argsort(examples.row, kind="stable")
    borders = np.searchsorted(examples.row[by_row], store.first_row)
    paths = [resume / f"{shard:05d}.safetensors" for shard in range(len(blocks))]
    mine = ours.mine(range(len(blocks)))
    total = sum(int(borders[shard + 1] - borders[shard]) for shard in mine)
    with progress("features: examples in context", total, "examples") as bar:
        for shard in mine:
            here = by_row[borders[shard] : borders[shard + 1]]
            pair_E = examples.row[here] - store.first_row[shard]
            make = partial(_around, encoder, shard, blocks[shard], pair_E, examples.feature[here], n_context)
            kept(paths[shard], make)
            bar.advance(len(here))
    ours.barrier()
    if not ours.first:
        return {}
    parts = [load_file(path) for path in paths]
    order = np.argsort(by_row, kind="stable")
    arrays: Arrays = {name: np.concatenate([part[name] for part in parts])[order] for name in FIXED}
    for name, fields in RAGGED.items():
        length_E = np.concatenate([np.diff(part[f"{name}/offsets"]) for part in parts])
        joined = {field: np.concatenate([part[f"{name}/{field}"] for part in parts]) for field in fields}
        arrays |= _lists(name, length_E[order], _reordered(joined, length_E, order))
    return arrays


def _reordered(fields: Arrays, length_E: Ints, order: Ints) -> Arrays:
    """The fields' values (V,) with the lists, of these lengths now, in another order."""
    stop_E, begun = np.cumsum(length_E)[order], np.concatenate([[0], np.cumsum(length_E[order])])
    start_E = stop_E - length_E[order]
    moved = {name: np.empty_like(values) for name, values in fields.items()}
    parts = np.searchsorted(begun, np.arange(0, begun[-1], _PART), side="right") - 1
    for low, high in itertools.pairwise([*np.unique(parts), len(order)]):
        _, index = _ranges(start_E[low:high], stop_E[low:high])
        for name, values in fields.items():
            moved[name][begun[low] : begun[high]] = values[index]
    return moved


def _around(encoder: Encoder, shard: int, blocks: list[Block], pair_E: Ints, feature_E: Ints, n_context: int) -> Arrays:
    """What surrounds the examples of one shard, at these pairs (ascending) of these features."""
    offset_W = np.arange(-n_context, n_context + 1)
    window_EW = np.zeros((len(pair_E), len(offset_W)), np.float32)
    for block in blocks:
        near = slice(*np.searchsorted(pair_E, (block.start - n_context, block.stop + n_context)))
        if near.start == near.stop:
            continue
        pair_EW = pair_E[near, None] + offset_W
        inside = (pair_EW >= block.start) & (pair_EW < block.stop)
        found = encoder.at(block, feature_E[near], np.where(inside, pair_EW - block.start, -1))
        window_EW[near][inside] = found[inside]
    return Surroundings(encoder.store.plan(shard), n_context).of(pair_E, window_EW)


@dataclass(frozen=True)
class _Shown:
    """What is shown around E examples, and the V pairs in it, those of one example after those of another."""

    low_E: Ints
    """First pair."""
    high_E: Ints
    """The pair behind the last."""
    begin_E: Ints
    """First character of the document's text."""
    stop_E: Ints
    """The character behind the last."""
    example_V: Ints
    pair_V: Ints
    activation_V: NDArray[np.float32]
    """The feature's."""


class Surroundings:
    """Text, words and tokens around the pairs of one shard, `n_context` pairs on each side of an example."""

    def __init__(self, plan: ShardPlan, n_context: int = 0) -> None:
        self._documents = plan.documents
        self._n_context = n_context
        self._document_N = plan.pairs.document.astype(np.int64)
        self._end_N = plan.pairs.char_end.astype(np.int64)
        of_document = np.searchsorted(self._document_N, np.arange(len(plan.documents) + 1))
        self._first_N, self._behind_N = of_document[self._document_N], of_document[self._document_N + 1]
        self._tokens = [_FlatTokens(plan, side) for side in SIDES]
        texts = [document.text for document in plan.documents]
        code_C = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<U1")
        self._offset = np.cumsum([0, *map(len, texts)])
        self._space_C = np.char.isspace(code_C)
        self.start_N = self._word_starts()
        """(N,) the character of its text at which the word that ends at each pair begins."""

    def of(self, pair_E: Ints, window_EW: NDArray[np.float32]) -> Arrays:
        """What surrounds examples at these pairs, with the activations in the windows around; see `gather`."""
        shown = self._shown(pair_E, window_EW)
        documents = [self._documents[i] for i in self._document_N[pair_E].tolist()]
        fixed = {
            "document": [document.index for document in documents],
            "source": [document.source for document in documents],
            "centre": pair_E - shown.low_E,
            "tokens_differ": self.tokens_differ(pair_E),
        }
        arrays: Arrays = {name: np.asarray(fixed[name], dtype) for name, dtype in FIXED.items()}
        spans = zip(documents, shown.begin_E.tolist(), shown.stop_E.tolist(), strict=True)
        texts = [document.text[begin:stop].encode("utf-8", "surrogatepass") for document, begin, stop in spans]
        utf8 = np.frombuffer(b"".join(texts), np.uint8)
        arrays |= _lists("text", np.array([len(text) for text in texts], np.int64), {"bytes": utf8})
        arrays |= self._words(shown)
        for tokens in self._tokens:
            arrays |= tokens.inside(shown)
        return arrays

    def _words(self, shown: _Shown) -> Arrays:
        begin_V = shown.begin_E[shown.example_V]
        places = {"start": self.start_N[shown.pair_V] - begin_V, "end": self._end_N[shown.pair_V] - begin_V}
        return _lists("words", shown.high_E - shown.low_E, places | {"activation": shown.activation_V})

    def _shown(self, pair_E: Ints, window_EW: NDArray[np.float32]) -> _Shown:
        """As many pairs as fit into the window, the document and the characters that are shown at most."""
        low_E = np.maximum(self._first_N[pair_E], pair_E - self._n_context)
        high_E = np.minimum(self._behind_N[pair_E], pair_E + self._n_context + 1)
        end_E, reach = self._end_N[pair_E], _CHARACTERS_PER_PLACE * self._n_context
        while (far := (low_E < pair_E) & (end_E - self.start_N[low_E] > reach)).any():
            low_E[far] += 1
        while (far := (high_E - 1 > pair_E) & (self._end_N[high_E - 1] - end_E > reach)).any():
            high_E[far] -= 1
        example_V, pair_V = _ranges(low_E, high_E)
        activation_V = window_EW[example_V, pair_V - pair_E[example_V] + self._n_context]
        return _Shown(low_E, high_E, self.start_N[low_E], self._end_N[high_E - 1], example_V, pair_V, activation_V)

    def tokens_differ(self, pair_E: Ints) -> NDArray[np.bool_]:
        """(E,) whether the two models' tokens at these pairs begin or end at other characters.

        White space at either end of a token does not count.
        """
        base_E = self._offset[self._document_N[pair_E]]
        # Two places differ by white space alone when as many visible characters are before them.
        visible_C = np.concatenate([[0], np.cumsum(~self._space_C)])
        bounds = [tokens.bounds(pair_E) for tokens in self._tokens]
        a, b = (np.where(one >= 0, visible_C[base_E + np.maximum(one, 0)], -1) for one in bounds)
        return (a != b).any(axis=0)

    def _word_starts(self) -> Ints:
        space_C = self._space_C
        place_C, none = np.arange(len(space_C)), len(space_C)
        # The first character from each on that is no white space; the last one before each that is.
        solid_C = np.append(np.minimum.accumulate(np.where(space_C, none, place_C)[::-1])[::-1], none)
        blank_C = np.append(-1, np.maximum.accumulate(np.where(space_C, place_C, -1)))

        # All in characters of all texts: the document's first, the word's end, and the end of the word before.
        base_N = self._offset[self._document_N]
        end_N = base_N + self._end_N
        before_N = np.append(0, end_N[:-1])
        floor_N = np.where(np.arange(len(end_N)) == self._first_N, base_N, before_N)
        # The word begins where the first of the two tokens does.
        start_N = end_N
        for tokens in self._tokens:
            token_N = tokens.bounds(slice(None))[0]
            usable_N = (token_N >= 0) & (token_N <= self._end_N)
            start_N = np.where(usable_N, np.minimum(start_N, base_N + token_N), start_N)
        start_N = np.maximum(floor_N, start_N)
        # Many tokens begin with the blank before the word.
        start_N = np.maximum(start_N, np.minimum(solid_C[start_N], end_N - 1))
        # Others begin inside a word, whose first characters no pair of this document has.
        reach_N = np.maximum(floor_N, np.maximum(end_N - _MAX_WORD, blank_C[start_N] + 1))
        return np.minimum(start_N, reach_N) - base_N


class _FlatTokens:
    """One side's tokens of all texts."""

    def __init__(self, plan: ShardPlan, side: str) -> None:
        self._side = side
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

    def inside(self, shown: _Shown) -> Arrays:
        """The tokens inside of what is shown, cut at its borders."""
        first_E, stop_E = self._at_N[shown.low_E], self._at_N[shown.high_E - 1] + 1
        # Also the tokens before the first pair's that end inside.
        while True:
            before_E = np.maximum(first_E - 1, 0)
            in_text_E = (first_E > self._first_N[shown.low_E]) & (self._start_T[before_E] >= 0)
            reaches_E = in_text_E & (self._end_T[before_E] > shown.begin_E)
            if not reaches_E.any():
                break
            first_E -= reaches_E
        example_V, token_V = _ranges(first_E, stop_E)
        value_V = np.zeros(len(token_V), np.float32)
        begun_E = np.cumsum(stop_E - first_E) - (stop_E - first_E)
        value_V[(begun_E - first_E)[shown.example_V] + self._at_N[shown.pair_V]] = shown.activation_V
        inside_V = self._start_T[token_V] >= 0
        example_V, token_V, value_V = example_V[inside_V], token_V[inside_V], value_V[inside_V]
        begin_V = shown.begin_E[example_V]
        fields = {
            "start": np.maximum(self._start_T[token_V], begin_V) - begin_V,
            "end": np.minimum(self._end_T[token_V], shown.stop_E[example_V]) - begin_V,
            "activation": value_V,
        }
        return _lists(f"tokens_{self._side}", np.bincount(example_V, minlength=len(first_E)), fields)
