"""Where tokens end in a text that the tokenizer's normalizer changed before it was cut.

The offsets that a tokenizer gives leave out what its normalizer joined to the character before (NFC makes one letter of
`e` and U+0301, whose token then ends before U+0301) or dropped, and where marks changed their order a token may end
before a mark that its letter was joined with. A model has read these characters at that token: its end is moved behind
them, so that the text up to a token's end is what was read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from modeldiff.texts.words import attached, is_space
from modeldiff.workspace.plan import Ints

# Longest run of marks that is looked into; ends inside a longer one are moved behind it.
_MOST_MARKS = 64


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
    # What is joined begins with a character that is no mark, and that none before it was joined to.
    begins = ~marks & ~np.append(False, unread)[:-1]
    inner = np.unique(ends)
    inner = inner[(inner > 0) & (inner < length)]
    moved = np.arange(length + 1, dtype=ends.dtype)
    for end in inner[unread[inner] | marks[inner]].tolist():
        stop = end
        while stop < length and unread[stop] and not is_cut(_joined(text, begins, stop), text[stop]):
            stop += 1
        if stop < length and marks[stop]:
            left = _joined(text, begins, stop)
            after = stop + int(np.argmin(np.append(marks[stop : stop + _MOST_MARKS], False)))
            if len(left) + after - stop > _MOST_MARKS or not is_cut(left, text[stop:after]):
                stop += int(np.argmin(np.append(marks[stop:], False)))
        moved[end] = stop
    return moved[ends]


def _joined(text: str, begins: NDArray[np.bool_], stop: int) -> str:
    """What stands before `stop` that a character there may be joined to."""
    start = max(0, stop - _MOST_MARKS)
    (found,) = np.nonzero(begins[start:stop])
    return text[start + int(found[-1]) if len(found) else start : stop]
