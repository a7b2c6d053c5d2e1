"""A number for each character of a text, all at once: what is asked of Unicode's tables is asked once a character."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_CODE_POINTS = 0x110000
_UNKNOWN = -1


class CharTable:
    """Give it a text, and it gives the number of each of its characters, (len(text),) int16.

    Args:
        number_of: the number of one character, at least 0; asked when a character is first met.
    """

    def __init__(self, number_of: Callable[[str], int]) -> None:
        self._number_of = number_of
        self._table = np.full(_CODE_POINTS, _UNKNOWN, np.int16)

    def __call__(self, text: str) -> NDArray[np.int16]:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
        numbers = self._table[codes]
        new = np.unique(codes[numbers == _UNKNOWN])
        if not len(new):
            return numbers
        self._table[new] = [self._number_of(chr(code)) for code in new.tolist()]
        return self._table[codes]
