"""Where tokens end in a text that the tokenizer's normalizer changed before it was cut.

The offsets that a tokenizer gives leave out what its normalizer joined to the character before (NFC makes one letter of
`e` and U+0301, whose token then ends before U+0301) or dropped, and where marks changed their order a token may end
before a mark that its letter was joined with. A model has read these characters at that token: its end is moved behind
them, so that the text up to a token's end is what was read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modeldiff.texts.words import attached, is_space
from modeldiff.workspace.plan import Ints

# Most characters that are looked at together; ends inside a longer run of marks are moved behind it.
_MOST = 64


def ends_read(text: str, starts: Ints, ends: Ints, normalize: Callable[[str], str]) -> Ints:
    """By token, (T,): its end with all that was read at it. The tokenizer gave `starts` and `ends`, (T,), all in the
    text; `normalize` is what it does to texts."""
    known: dict[tuple[str, str], bool] = {}

    def is_cut(left: str, right: str) -> bool:
        """Whether normalised text can be cut between the two, and what is right of it is in it."""
        if (left, right) not in known:
            before, whole = normalize(left), normalize(left + right)
            known[left, right] = whole.startswith(before) and whole != before
        return known[left, right]

    marks, length = attached(text), len(text)
    over = np.zeros(length + 1, np.int64)
    np.add.at(over, starts, 1)
    np.add.at(over, ends, -1)
    unread = (np.cumsum(over)[:-1] == 0) & ~is_space(text)
    here = np.arange(length)
    # What is joined begins with a character that is no mark, and that none before it was joined to.
    begins = ~marks & ~np.append(False, unread)[:-1]
    begin = np.maximum.accumulate(np.where(begins, here, 0))
    # The first position from each on that has no mark behind it.
    past_marks = np.minimum.accumulate(np.where(marks, length, here)[::-1])[::-1]
    is_end = np.zeros(length + 1, bool)
    is_end[ends] = True
    moved = np.arange(length + 1, dtype=ends.dtype)
    for end in (np.flatnonzero(is_end[1:-1] & (unread | marks)[1:]) + 1).tolist():
        stop = end
        while (
            stop < length and unread[stop] and not is_cut(text[max(begin[stop - 1], stop - _MOST) : stop], text[stop])
        ):
            stop += 1
        if stop < length and marks[stop]:
            left, right = text[begin[stop - 1] : stop], text[stop : past_marks[stop]]
            if len(left) + len(right) > _MOST or not is_cut(left, right):
                stop = past_marks[stop]
        moved[end] = stop
    return moved[ends]
