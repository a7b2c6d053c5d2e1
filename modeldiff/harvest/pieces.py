"""Cutting a document into pieces: tokenized and aligned, with their pairs. No document depends on another, so several
processes can do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from modeldiff.errors import ModeldiffError
from modeldiff.harvest.report import Counts
from modeldiff.lm.chat import ChatError
from modeldiff.lm.ref import ModelRef
from modeldiff.sides import SIDES
from modeldiff.texts.align import Alignment, align
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader, open_reader
from modeldiff.workspace.plan import Document, PairTable, Tokens

# A text that both models read at once, and its pairs.
Piece = tuple[Document, PairTable]


@dataclass(frozen=True)
class Cut:
    """What became of one document."""

    pieces: list[Piece]
    """Those that hold pairs; which document of which source they are is not known yet."""
    counts: dict[str, Any]
    """What was kept and lost, see report.Counts; nothing of a document that cannot be used."""
    problem: str = ""
    """Why it cannot be used, if it cannot."""


@dataclass(frozen=True)
class Cutter:
    """How documents are cut; `align` and `pair_at` as in the settings."""

    readers: dict[str, Reader]
    """By side."""
    context: dict[str, int]
    """By side, the most tokens that a model reads at once."""
    align: str
    pair_at: str

    def cut(self, record: Record) -> Cut:
        """The pieces of one record that hold pairs, of at most `context` tokens per side, special tokens included.

        A document that fits is one piece, and a chat that does not fit loses its end. A longer text is cut after
        matches, at a word end where there is one. The special tokens that the tokenizer puts around a text stand around
        every piece; those in a text stand where they stand in it. What comes after the last match that fits no piece is
        left out.
        """
        tokens, problem = self._read(record)
        if problem:
            return Cut([], {}, problem)
        counts = Counts()
        if record.messages and any(len(tokens[side].ids) > self.context[side] for side in SIDES):
            counts.data["chats_cut"] += 1
            for side, one in tokens.items():
                read = slice(self.context[side])
                tokens[side] = Tokens(one.ids[read], one.starts[read], one.ends[read])
        decode = {side: self.readers[side].decode for side in SIDES} if self.align == "greedy" else None
        alignment = align(record.text, tokens, self.pair_at, decode)
        added = {side: (0, 0) if record.messages else self.readers[side].added for side in SIDES}
        pieces, matches = _cut(record.text, tokens, alignment, self.context, added)
        counts.add(record.text, alignment, matches)
        return Cut([(Document(text, 0, 0, read), pairs) for text, read, pairs in pieces if len(pairs)], counts.data)

    def cut_all(self, records: Sequence[Record]) -> list[Cut | ModeldiffError]:
        """Of each record, in order, what became of it, or the error that it is."""
        made: list[Cut | ModeldiffError] = []
        for record in records:
            try:
                made.append(self.cut(record))
            except ModeldiffError as error:
                made.append(error)
        return made

    def _read(self, record: Record) -> tuple[dict[str, Tokens], str]:
        """(the tokens of both sides; why there are none, if so)."""
        try:
            return {side: self.readers[side].read(record) for side in SIDES if not record.problem}, record.problem
        except ChatError as error:
            return {}, str(error)


@dataclass
class CutElsewhere:
    """`Cutter.cut_all` for another process, which opens the tokenizers of the models itself."""

    ref: dict[str, ModelRef]
    context: dict[str, int]
    align: str
    pair_at: str

    @cached_property
    def _cutter(self) -> Cutter:
        readers = {side: open_reader(self.ref[side], side) for side in SIDES}
        return Cutter(readers, self.context, self.align, self.pair_at)

    def __call__(self, records: Sequence[Record]) -> list[Cut | ModeldiffError]:
        return self._cutter.cut_all(records)


def _cut(
    text: str,
    tokens: dict[str, Tokens],
    alignment: Alignment,
    context: dict[str, int],
    added: dict[str, tuple[int, int]],
) -> tuple[list[tuple[str, dict[str, Tokens], PairTable]], int]:
    """(the pieces of a document as text, tokens by side and pairs; how many of its matches are in them). added: by
    side, how many tokens stand before and after every piece."""
    matches = len(alignment.char_end)
    if not matches:
        return [], 0
    head = {side: added[side][0] for side in SIDES}
    tail = {side: len(tokens[side].ids) - added[side][1] for side in SIDES}
    room = {side: context[side] - sum(added[side]) for side in SIDES}
    pieces = []
    first, begin, char_start = 0, head, 0
    while (stop := _last_that_fits(alignment, first, begin, room)) > first:
        end = {side: int(alignment.token[side][stop - 1]) + 1 for side in SIDES}
        char_stop = int(alignment.char_end[stop - 1])
        if stop == matches and all(tail[side] - begin[side] <= room[side] for side in SIDES):
            end, char_stop = tail, len(text)
        read = {
            side: _slice(one, (head[side], tail[side]), begin[side], end[side], char_start, char_stop)
            for side, one in tokens.items()
        }
        shift = {side: head[side] - begin[side] for side in SIDES}
        pieces.append((text[char_start:char_stop], read, _pairs(alignment, first, stop, char_start, shift)))
        first, begin, char_start = stop, end, char_stop
    return pieces, first


def _last_that_fits(alignment: Alignment, first: int, begin: dict[str, int], room: dict[str, int]) -> int:
    """The match to cut after (exclusive): the last word end that fits, else the last match that fits."""
    fits = min(int(np.searchsorted(alignment.token[s], begin[s] + room[s], side="left")) for s in SIDES)
    if fits == len(alignment.char_end):
        return fits
    at_word_end = np.flatnonzero(alignment.at_word_end[first:fits])
    return first + int(at_word_end[-1]) + 1 if len(at_word_end) else max(fits, first)


def _slice(tokens: Tokens, inner: tuple[int, int], begin: int, end: int, char_start: int, char_stop: int) -> Tokens:
    """The tokens begin..end between those before and after the `inner` ones; offsets count from `char_start`."""
    chosen = np.concatenate([np.arange(inner[0]), np.arange(begin, end), np.arange(inner[1], len(tokens.ids))])
    outside = tokens.starts[chosen] < 0
    starts, ends = (
        np.where(outside, -1, np.clip(offsets[chosen] - char_start, 0, char_stop - char_start)).astype(np.int32)
        for offsets in (tokens.starts, tokens.ends)
    )
    return Tokens(tokens.ids[chosen], starts, ends)


def _pairs(alignment: Alignment, first: int, stop: int, char_start: int, shift: dict[str, int]) -> PairTable:
    """The pairs among the matches first..stop; shift: by side, what to add to a token's index in the document."""
    rows = first + np.flatnonzero(alignment.kept[first:stop])
    return PairTable(
        document=np.zeros(len(rows), np.int32),
        token={side: (alignment.token[side][rows] + shift[side]).astype(np.int32) for side in SIDES},
        char_end=(alignment.char_end[rows] - char_start).astype(np.int32),
        window={side: alignment.window[side][rows].astype(np.int32) for side in SIDES},
    )
