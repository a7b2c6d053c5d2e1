"""Which token of A stands for the same place in the text as which token of B.

By offsets (the default): a pair exists wherever a token of A and a token of B end at the same character. Linear, exact,
and it finds its way back after a mismatch. Tokenizers differ in where a token begins (before or after the blank), so
only ends count, and white space at a token's end is left out of it. The bytes of one character may be spread over
several tokens that share its offsets: the last one counts.

Greedily: the paper's Algorithm 1 on decoded text (paper §2.7), for comparison. Its `normalize` is not specified in the
paper; here it is Unicode NFKC without white space.

Legend: T content tokens of one side, N matches. Positions are indices into the document's text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modeldiff.sides import SIDES
from modeldiff.texts.words import is_space, word_ends
from modeldiff.workspace.plan import Ints, Tokens

Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Decode = Callable[[Sequence[int]], str]

# The paper sets no bound. Where no window of this many tokens matches, the texts have parted for good (a tokenizer that
# rewrites letters), and growing on would only cost time.
MAX_WINDOW = 64
# What a decoder writes for the bytes of an unfinished character.
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Content:
    """The tokens of one side that hold visible text: no special tokens, no template, no pure white space. All (T,)."""

    token: Longs
    """Index among all tokens of the document."""
    start: Longs
    """Position of the first visible character."""
    end: Longs
    """Position after the last visible character."""
    complete: Bools
    """False for a token that holds only a part of its last character's bytes."""


@dataclass(frozen=True)
class Alignment:
    """All matches of a document, in order, and which of them are pairs."""

    content: dict[str, Content]
    """By side."""
    ordinal: dict[str, Longs]
    """By side, (N,): index into `content`."""
    token: dict[str, Longs]
    """By side, (N,): index among all tokens of the document."""
    char_end: Longs
    """(N,): where both tokens end."""
    window: dict[str, Longs]
    """By side, (N,): content tokens since the match before (1 = token by token)."""
    at_word_end: Bools
    """(N,): whether a word, number or punctuation mark ends there."""
    kept: Bools
    """(N,): whether the match is a pair of the harvest."""


def align(
    text: str, tokens: dict[str, Tokens], pair_at: str = "words", decode: dict[str, Decode] | None = None
) -> Alignment:
    """The alignment of one document. pair_at: "words" keeps matches at word ends only (see words.py), "tokens" all;
    decode: by side, token ids to text: align greedily; None: by offsets."""
    content = {side: content_of(text, tokens[side]) for side in SIDES}
    matches = _by_offsets(content) if decode is None else _greedily(tokens, content, decode)
    char_end = content["a"].end[matches["a"]]
    at_word_end = word_ends(text)[char_end]
    return Alignment(
        content=content,
        ordinal=matches,
        token={side: content[side].token[matches[side]] for side in SIDES},
        char_end=char_end,
        window={side: np.diff(matches[side], prepend=-1) for side in SIDES},
        at_word_end=at_word_end,
        kept=at_word_end if pair_at == "words" else np.ones(len(char_end), bool),
    )


def content_of(text: str, tokens: Tokens) -> Content:
    length = len(text)
    space = is_space(text)
    positions = np.arange(length)
    # visible_before[p]: the last position q <= p with a visible character right before it (0 if none).
    visible_before = np.maximum.accumulate(np.concatenate([[0], np.where(space, 0, positions + 1)]))
    # visible_from[p]: the first position q >= p with a visible character right after it (length if none).
    visible_from = np.minimum.accumulate(np.concatenate([np.where(space, length, positions), [length]])[::-1])[::-1]
    of_text = (tokens.starts >= 0) & (tokens.ends > tokens.starts)
    starts = np.where(of_text, tokens.starts, 0).astype(np.int64)
    ends = np.where(of_text, tokens.ends, 0).astype(np.int64)
    trimmed_ends = visible_before[ends]
    token = np.flatnonzero(of_text & (trimmed_ends > starts))
    end = trimmed_ends[token]
    next_start = np.append(starts[token][1:], length)
    whole = next_start >= end
    highest_before = np.maximum.accumulate(np.concatenate([[0], np.where(whole, end, 0)]))[:-1]
    return Content(token, visible_from[starts[token]], end, whole & (end > highest_before))


def _by_offsets(content: dict[str, Content]) -> dict[str, Longs]:
    """Indices into both sides' content, (N,): where complete tokens of both end at the same character."""
    complete = {side: np.flatnonzero(content[side].complete) for side in SIDES}
    ends = {side: content[side].end[complete[side]] for side in SIDES}
    _, in_a, in_b = np.intersect1d(ends["a"], ends["b"], assume_unique=True, return_indices=True)
    return {"a": complete["a"][in_a], "b": complete["b"][in_b]}


def _greedily(tokens: dict[str, Tokens], content: dict[str, Content], decode: dict[str, Decode]) -> dict[str, Longs]:
    """Algorithm 1: the final tokens of the shortest windows whose normalised decoded texts are equal are matched.

    Where they differ, the window with the shorter text grows; ties, and growth that is impossible for A, go to B. A
    window that ends inside a character grows first. If no match can be found, what has been aligned so far is returned.
    """
    ids = {side: tokens[side].ids[content[side].token] for side in SIDES}
    stops = [dict.fromkeys(SIDES, 0)]
    while following := _next_stop(ids, stops[-1], decode):
        stops.append(following)
    return {side: np.array([stop[side] - 1 for stop in stops[1:]], np.int64) for side in SIDES}


def _next_stop(ids: dict[str, Ints], start: dict[str, int], decode: dict[str, Decode]) -> dict[str, int] | None:
    """By side, after which token the next windows end that say the same; None: there are none."""

    def read(side: str) -> str:
        text = decode[side](ids[side][start[side] : stop[side]].tolist())
        return "".join(unicodedata.normalize("NFKC", text).split())

    last = {side: min(start[side] + MAX_WINDOW, len(ids[side])) for side in SIDES}
    if any(start[side] == last[side] for side in SIDES):
        return None
    stop = {side: start[side] + 1 for side in SIDES}
    texts = {side: read(side) for side in SIDES}
    while texts["a"] != texts["b"] or not texts["a"] or _unfinished(texts["a"]):
        side = _grows(texts, {side: stop[side] < last[side] for side in SIDES})
        if side is None:
            return None
        stop[side] += 1
        texts[side] = read(side)
    return stop


def _grows(texts: dict[str, str], possible: dict[str, bool]) -> str | None:
    """The side whose window grows; None: neither can."""
    unfinished = [side for side in SIDES if _unfinished(texts[side]) and possible[side]]
    if unfinished:
        return min(unfinished, key=lambda side: len(texts[side]))
    if len(texts["a"]) < len(texts["b"]) and possible["a"]:
        return "a"
    return "b" if possible["b"] else None


def _unfinished(text: str) -> bool:
    return text.endswith(_REPLACEMENT)
