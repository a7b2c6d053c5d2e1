"""Which token of A stands for the same place in the text as which token of B.

`match_offsets`: a pair exists wherever a token of A and a token of B end at the same character. Linear, exact, and it
finds its way back after a mismatch. (`greedy.py` holds the paper's algorithm, for comparison.)

Tokenizers differ in where a token begins (before or after the blank), so only ends count, and white space at a token's
end is left out of it. The bytes of one character may be spread over several tokens that share its offsets: the last one
counts.

Legend: T content tokens of one side, N pairs. Positions are indices into the document's text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modeldiff.sides import SIDES
from modeldiff.texts.words import is_space, word_ends
from modeldiff.workspace.plan import Tokens

Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
class Matches:
    """Places where both tokenizations end, as rising indices into the content tokens of each side, (N,)."""

    content: dict[str, Longs]
    """By side."""

    def __len__(self) -> int:
        return len(self.content["a"])


@dataclass(frozen=True)
class Alignment:
    """All matches of a document, and which of them are kept as pairs."""

    content: dict[str, Content]
    """By side."""
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
    ordinal: dict[str, Longs]
    """By side, (N,): index into `content`."""


def content_of(text: str, tokens: Tokens) -> Content:
    """The content tokens of one side of a document."""
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
    visible = of_text & (trimmed_ends > starts)
    token = np.flatnonzero(visible)
    end = trimmed_ends[token]
    next_start = np.append(starts[token][1:], length)
    whole = next_start >= end
    highest_before = np.maximum.accumulate(np.concatenate([[0], np.where(whole, end, 0)]))[:-1]
    return Content(
        token=token,
        start=visible_from[starts[token]],
        end=end,
        complete=whole & (end > highest_before),
    )


def match_offsets(content: dict[str, Content]) -> Matches:
    """Matches wherever complete tokens of both sides end at the same character."""
    complete = {side: np.flatnonzero(content[side].complete) for side in SIDES}
    ends = {side: content[side].end[complete[side]] for side in SIDES}
    _, in_a, in_b = np.intersect1d(ends["a"], ends["b"], assume_unique=True, return_indices=True)
    return Matches({"a": complete["a"][in_a], "b": complete["b"][in_b]})


def finish(text: str, content: dict[str, Content], matches: Matches, pair_at: str) -> Alignment:
    """The alignment that follows from the matches.

    Args:
        pair_at: "words" keeps matches at word ends only (see words.py), "tokens" all.
    """
    char_end = content["a"].end[matches.content["a"]]
    at_word_end = word_ends(text)[char_end]
    return Alignment(
        content=content,
        token={side: content[side].token[matches.content[side]] for side in SIDES},
        char_end=char_end,
        window={side: np.diff(matches.content[side], prepend=-1) for side in SIDES},
        at_word_end=at_word_end,
        kept=at_word_end if pair_at == "words" else np.ones(len(matches), bool),
        ordinal=matches.content,
    )
