"""Cutting documents that are longer than the context into pieces that both models read as texts of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modeldiff.sides import SIDES
from modeldiff.texts.align import Alignment
from modeldiff.workspace.plan import Tokens


@dataclass(frozen=True)
class Piece:
    """A stretch of a document: matches first..stop of its alignment, and what each model reads."""

    first: int
    stop: int
    char_start: int
    char_stop: int
    tokens: dict[str, Tokens]
    """By side; offsets count from `char_start`."""
    shift: dict[str, int]
    """By side: add to a token's index in the document to get its index in the piece."""


def cut(text: str, tokens: dict[str, Tokens], alignment: Alignment, context: dict[str, int]) -> list[Piece]:
    """The document as pieces of at most `context` tokens per side, special tokens included.

    A document that fits is one piece. A longer one is cut after matches, at a word end where there is one. The special
    tokens that the tokenizer puts around a text (before its first, after its last text token) stand around every piece.
    What comes after the last match that fits no piece is left out.
    """
    if all(len(tokens[side].ids) <= context[side] for side in SIDES):
        return [Piece(0, len(alignment.char_end), 0, len(text), tokens, dict.fromkeys(SIDES, 0))]
    bounds = {side: _text_bounds(tokens[side]) for side in SIDES}
    room = {side: context[side] - bounds[side][0] - (len(tokens[side].ids) - bounds[side][1]) for side in SIDES}
    pieces: list[Piece] = []
    begin = {side: bounds[side][0] for side in SIDES}
    first = char_start = 0
    while first < len(alignment.char_end):
        stop = _last_that_fits(alignment, first, begin, room)
        if stop == first:
            break
        end = {side: int(alignment.token[side][stop - 1]) + 1 for side in SIDES}
        char_stop = int(alignment.char_end[stop - 1])
        if stop == len(alignment.char_end) and all(bounds[side][1] - begin[side] <= room[side] for side in SIDES):
            end, char_stop = {side: bounds[side][1] for side in SIDES}, len(text)
        piece_tokens = {
            side: _slice(tokens[side], bounds[side], begin[side], end[side], char_start, char_stop) for side in SIDES
        }
        shift = {side: bounds[side][0] - begin[side] for side in SIDES}
        pieces.append(Piece(first, stop, char_start, char_stop, piece_tokens, shift))
        first, begin, char_start = stop, end, char_stop
    return pieces


def truncate(tokens: Tokens, context: int) -> Tokens:
    """The first `context` tokens: what is left of a chat that is too long."""
    return Tokens(tokens.ids[:context], tokens.starts[:context], tokens.ends[:context])


def _text_bounds(tokens: Tokens) -> tuple[int, int]:
    """Index of the first text token and after the last one."""
    of_text = np.flatnonzero(tokens.starts >= 0)
    return int(of_text[0]), int(of_text[-1]) + 1


def _last_that_fits(alignment: Alignment, first: int, begin: dict[str, int], room: dict[str, int]) -> int:
    """The match to cut after (exclusive): the last word end that fits, else the last match that fits."""
    fits = min(int(np.searchsorted(alignment.token[s], begin[s] + room[s], side="left")) for s in SIDES)
    if fits == len(alignment.char_end):
        return fits
    at_word_end = np.flatnonzero(alignment.at_word_end[first:fits])
    return first + int(at_word_end[-1]) + 1 if len(at_word_end) else max(fits, first)


def _slice(tokens: Tokens, bounds: tuple[int, int], begin: int, end: int, char_start: int, char_stop: int) -> Tokens:
    chosen = np.concatenate([np.arange(bounds[0]), np.arange(begin, end), np.arange(bounds[1], len(tokens.ids))])
    outside = tokens.starts[chosen] < 0
    length = char_stop - char_start
    starts, ends = (
        np.where(outside, -1, np.clip(offsets[chosen] - char_start, 0, length)).astype(np.int32)
        for offsets in (tokens.starts, tokens.ends)
    )
    return Tokens(tokens.ids[chosen], starts, ends)
