"""The paper's alignment of two tokenizations by their decoded text (paper §2.7, Algorithm 1), for comparison and for
tokenizers that give no character offsets.

`normalize` is not specified in the paper. Here it is Unicode NFKC without white space: tokenizers differ in both.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from modeldiff.sides import SIDES
from modeldiff.texts.align import Content, Matches
from modeldiff.workspace.plan import Ints, Tokens

Decode = Callable[[Sequence[int]], str]
# The paper sets no bound. Where no window of this many tokens matches, the texts have parted for good (a tokenizer that
# rewrites letters), and growing on would only cost time.
MAX_WINDOW = 64
# What a decoder writes for the bytes of an unfinished character.
_REPLACEMENT = "\ufffd"


def normalize(text: str) -> str:
    """NFKC, without white space."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def match_greedy(tokens: dict[str, Tokens], content: dict[str, Content], decode: dict[str, Decode]) -> Matches:
    """Algorithm 1: the final tokens of the shortest windows whose normalised decoded texts are equal are matched.

    Where they differ, the window with the shorter text grows; ties, and growth that is impossible for A, go to B. A
    window that ends inside a character grows first. If no match can be found, what has been aligned so far is returned.
    """
    ids = {side: tokens[side].ids[content[side].token] for side in SIDES}
    found: dict[str, list[int]] = {side: [] for side in SIDES}
    start = dict.fromkeys(SIDES, 0)
    while all(start[side] < len(ids[side]) for side in SIDES):
        stop = {side: start[side] + 1 for side in SIDES}
        texts = {side: normalize(decode[side](ids[side][start[side] : stop[side]].tolist())) for side in SIDES}
        while texts["a"] != texts["b"] or not texts["a"] or _unfinished(texts["a"]):
            side = _grows(texts, {s: stop[s] - start[s] < MAX_WINDOW and stop[s] < len(ids[s]) for s in SIDES})
            if side is None:
                return _matches(found)
            stop[side] += 1
            texts[side] = normalize(decode[side](ids[side][start[side] : stop[side]].tolist()))
        for side in SIDES:
            found[side].append(stop[side] - 1)
            start[side] = stop[side]
    return _matches(found)


def locate(text: str, ids: Sequence[int], special: Sequence[bool], decode: Decode) -> tuple[Ints, Ints]:
    """Character offsets (starts, ends) of tokens whose tokenizer gives none, by following their decoded text.

    Tokens that spell a character together share its offsets. -1 for special tokens, and from the place on where the
    decoded text no longer is the text.
    """
    starts = np.full(len(ids), -1, np.int32)
    ends = np.full(len(ids), -1, np.int32)
    position, first = 0, 0
    for last in range(len(ids)):
        if special[last]:
            first = last + 1
            continue
        piece = normalize(decode(ids[first : last + 1]))
        if not piece:
            first = last + 1  # white space: nothing to find
            continue
        span = _find(text, position, piece)
        if span is None:
            if _unfinished(piece) and last + 1 - first < MAX_WINDOW:
                continue
            return starts, ends
        starts[first : last + 1], ends[first : last + 1] = span
        position, first = span[1], last + 1
    return starts, ends


def _find(text: str, position: int, piece: str) -> tuple[int, int] | None:
    """The span at `position`, white space aside, whose normal form is `piece`."""
    while position < len(text) and not normalize(text[position]):
        position += 1
    end = position
    while end < len(text):
        end += 1
        seen = normalize(text[position:end])
        if seen == piece:
            return position, end
        if len(seen) > len(piece):
            return None
    return None


def _grows(texts: dict[str, str], possible: dict[str, bool]) -> str | None:
    unfinished = [side for side in SIDES if _unfinished(texts[side]) and possible[side]]
    if unfinished:
        return min(unfinished, key=lambda side: len(texts[side]))
    if len(texts["a"]) < len(texts["b"]) and possible["a"]:
        return "a"
    return "b" if possible["b"] else None


def _unfinished(text: str) -> bool:
    return text.endswith(_REPLACEMENT)


def _matches(found: dict[str, list[int]]) -> Matches:
    return Matches({side: np.array(found[side], np.int64) for side in SIDES})
