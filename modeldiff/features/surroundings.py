"""What stands around pairs of a shard: text, words and tokens, worked out for many pairs at once.

A *word* here is what ends at one pair: the characters from the end of the pair before it (or from the last white
space) to the place where the tokens of both models end.

Legend: N pairs of the shard, E examples, W places of a window (the example and `n_context` pairs on each side), C
characters of all texts, T tokens of one side of all texts, V values of all examples together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modeldiff.features.ragged import Column, Ragged, ranges
from modeldiff.sides import SIDES
from modeldiff.workspace.plan import Document, PairTable, ShardPlan

SPANS: dict[str, type[np.generic]] = {"start": np.int32, "end": np.int32, "activation": np.float32}
FIXED: dict[str, type[np.generic]] = {
    "document": np.int64,
    "source": np.int32,
    "centre": np.int32,
    "tokens_differ": np.bool_,
}
# Bounds on what is shown where pairs are far apart (a long stretch that the tokenizers do not share).
_CHARACTERS_PER_PLACE = 20
_MAX_WORD = 40
# Above it there is no white space.
_LAST_SPACE = 0x3000

Ints = NDArray[np.int64]


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


class Surroundings:
    """Of the pairs of one shard. A window ends where its document or the shard ends.

    Args:
        n_context: pairs on each side of an example.
    """

    def __init__(self, plan: ShardPlan, n_context: int) -> None:
        self._documents = plan.documents
        self._n_context = n_context
        self._document_N = plan.pairs.document.astype(np.int64)
        self._end_N = plan.pairs.char_end.astype(np.int64)
        of_document = np.searchsorted(self._document_N, np.arange(len(plan.documents) + 1))
        self._first_N, self._behind_N = of_document[self._document_N], of_document[self._document_N + 1]
        self._tokens = {side: _FlatTokens(plan, side) for side in SIDES}
        code_C, self._offset = _characters([document.text for document in plan.documents])
        self._space_C = _spaces()[np.minimum(code_C, _LAST_SPACE + 1)]
        self._start_N = self._word_starts()

    def of(self, pair_E: Ints, window_EW: NDArray[np.float32]) -> tuple[dict[str, Column], dict[str, Ragged]]:
        """(fixed, ragged) of `Contexts` for examples at these pairs, with the activations in the windows around."""
        low_E, high_E = self._shown(pair_E)
        document_E = self._document_N[pair_E]
        begin_E, stop_E = self._start_N[low_E], self._end_N[high_E - 1]
        example_V, pair_V = ranges(low_E, high_E)
        activation_V = window_EW[example_V, pair_V - pair_E[example_V] + self._n_context]
        words = {
            "start": self._start_N[pair_V] - begin_E[example_V],
            "end": self._end_N[pair_V] - begin_E[example_V],
            "activation": activation_V,
        }
        ragged = {
            "text": self._texts(document_E, begin_E, stop_E),
            "words": _ragged(high_E - low_E, words),
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
        return {name: np.asarray(fixed[name], dtype) for name, dtype in FIXED.items()}, ragged

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
        """(N,) `word_start` of every pair."""
        offset, space_C = self._offset, self._space_C
        place_C = np.arange(len(space_C))
        none = len(space_C)
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
            one_N = tokens.starts_at_pairs()
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
        while (far := (low_E < pair_E) & (end_E - self._start_N[low_E] > reach)).any():
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
        return _ragged(lengths, {"bytes": np.frombuffer(b"".join(texts), np.uint8)})


class _FlatTokens:
    """One side's tokens of all documents of a shard in flat arrays."""

    def __init__(self, plan: ShardPlan, side: str) -> None:
        tokens = [document.tokens[side] for document in plan.documents]
        offset = np.cumsum([0, *(len(one.ids) for one in tokens)])
        empty = np.zeros(0, np.int64)
        self._start_T = np.concatenate([empty, *(one.starts for one in tokens)])
        self._end_T = np.concatenate([empty, *(one.ends for one in tokens)])
        document_N = plan.pairs.document
        self._at_N: Ints = offset[document_N] + plan.pairs.token[side].astype(np.int64)
        self._first_N = offset[document_N]

    def starts_at_pairs(self) -> Ints:
        """(N,) characters of its text at which the token of each pair starts; -1: it is not part of the text."""
        return self._start_T[self._at_N]

    def bounds(self, pair_E: Ints) -> Ints:
        """(2, E) characters of its text at which the token of each of these pairs starts and ends; -1 likewise."""
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
        """The tokens inside windows, cut at their borders.

        Args:
            pair_V, of_V, activation_V: the pairs of all windows one after the other, the example of each, activations.
        """
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
        columns = {
            "start": np.maximum(self._start_T[token_V], begin_V) - begin_V,
            "end": np.minimum(self._end_T[token_V], stop_E[example_V]) - begin_V,
            "activation": value_V,
        }
        return _ragged(np.bincount(example_V, minlength=len(low_E)), columns)


def _ragged(lengths: Ints, columns: dict[str, Column]) -> Ragged:
    dtypes: dict[str, type[np.generic]] = {"bytes": np.uint8, **SPANS}
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(offsets, {name: column.astype(dtypes[name], copy=False) for name, column in columns.items()})


def _characters(texts: Sequence[str]) -> tuple[NDArray[np.uint32], Ints]:
    """(code points (C,) of all texts, where each begins)."""
    code_C = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return code_C, np.cumsum([0, *map(len, texts)])


@functools.cache
def _spaces() -> NDArray[np.bool_]:
    """By code point, whether it is white space; the last entry stands for all above."""
    return np.array([*(chr(code).isspace() for code in range(_LAST_SPACE + 1)), False])
