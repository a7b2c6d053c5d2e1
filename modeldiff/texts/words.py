"""Where words, numbers and punctuation marks end, in any script: the rule behind `--pair-at words`.

A position of a text (a Python string index, counted between characters) is a word end when what stands before it is
complete: a word of letters and digits, a number, or one mark or symbol. The rule, in the spirit of Unicode's word
boundaries (UAX 29) but without its tables:
- never before a combining mark, a variation selector, a skin tone, a zero-width (non-)joiner, the sound mark of a
  half-width kana, the vowel of a Hangul syllable in pieces: they belong to the character before them; never between
  the parts of an emoji sequence or of a flag;
- never between two letters or digits, so `GPT4` and `3rd` end once; `_` counts as a letter;
- not at an apostrophe between letters (`don't`), nor at a point or comma between digits (`3.14`, `1,000`);
- scripts written without spaces (Chinese, Japanese, Thai, Khmer, ...) have no visible word ends: there every whole
  character (with its marks) counts as a word;
- every punctuation mark and symbol is complete by itself; white space never ends anything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_SPACE, _LETTER, _DIGIT, _UNSPACED, _OTHER, _EXTEND, _JOINER, _FLAG = range(8)

# Blocks of scripts without spaces between words (Unicode block ranges).
_UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x1AAF),  # Tai Le to Tai Tham
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),  # ideographic iteration mark, zero
    (0x3021, 0x312F),  # Hangzhou numerals, kana, bopomofo
    (0x31A0, 0x31FF),  # bopomofo, kana extensions
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0x9FFF),  # CJK
    (0xA980, 0xA9DF),  # Javanese
    (0xF900, 0xFAFF),  # CJK compatibility
    (0xFF66, 0xFF9F),  # half-width kana
    (0x1B000, 0x1B16F),  # kana supplements
    (0x20000, 0x3FFFF),  # CJK extensions
)
# Classes of characters by what they are used for, and of the others by their Unicode category, or its first letter.
_BY_USE = {
    **dict.fromkeys("\u200b\u2060\ufeff", _SPACE),  # zero-width space, word joiner, byte order mark
    "\u200d": _JOINER,
    **dict.fromkeys("\u0e33\u0eb3\uff9e\uff9f", _EXTEND),  # Thai and Lao sara am, half-width sound marks
    **dict.fromkeys(map(chr, (*range(0x1160, 0x1200), *range(0xD7B0, 0xD7FC))), _EXTEND),  # vowels, finals of Hangul
    **dict.fromkeys(map(chr, range(0x1F3FB, 0x1F400)), _EXTEND),  # skin tones
    **dict.fromkeys(map(chr, range(0x1F1E6, 0x1F200)), _FLAG),
    "_": _LETTER,
}
_BY_CATEGORY = {"M": _EXTEND, "Cf": _EXTEND, "Nd": _DIGIT, "L": _LETTER, "N": _DIGIT}
_APOSTROPHES = "'\u2019"
_DECIMAL_MARKS = ".,\u066b\u066c"
_UNKNOWN = -1


class CharTable:
    """Call it with a text for the number of each character, (len(text),) int16, as `number_of` says: at least 0, and
    asked once for each character that is met."""

    def __init__(self, number_of: Callable[[str], int]) -> None:
        self._number_of = number_of
        self._table = np.full(0x110000, _UNKNOWN, np.int16)

    def __call__(self, text: str) -> NDArray[np.int16]:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
        numbers = self._table[codes]
        new = np.unique(codes[numbers == _UNKNOWN])
        if not len(new):
            return numbers
        self._table[new] = [self._number_of(chr(code)) for code in new.tolist()]
        return self._table[codes]


def word_ends(text: str) -> NDArray[np.bool_]:
    """For each position 0..len(text) of the text, whether a word ends there; shape (len(text) + 1,)."""
    ends = np.zeros(len(text) + 1, bool)
    if not text:
        return ends
    classes = char_classes(text)
    # Marks and joiners count as the character that they belong to.
    before = classes[np.maximum.accumulate(np.where(attached(text), 0, np.arange(len(classes))))]
    after = np.append(classes[1:], _SPACE)
    inside = (
        (before == _SPACE)
        | (after == _EXTEND)
        | (after == _JOINER)
        | ((classes == _JOINER) & (after != _SPACE))
        | (((before == _LETTER) | (before == _DIGIT)) & ((after == _LETTER) | (after == _DIGIT)))
        | ((before == _FLAG) & (after == _FLAG))
    )
    ends[1:] = ~inside
    for marks, kind in ((_APOSTROPHES, _LETTER), (_DECIMAL_MARKS, _DIGIT)):
        for mark in marks:
            position = text.find(mark, 1)
            while position != -1:
                if before[position - 1] == kind and after[position] == kind:
                    ends[position : position + 2] = False
                position = text.find(mark, position + 1)
    return ends


def is_space(text: str) -> NDArray[np.bool_]:
    """For each character, whether it is white space (zero-width spaces included); shape (len(text),)."""
    return char_classes(text) == _SPACE


def attached(text: str) -> NDArray[np.bool_]:
    """For each character, whether it belongs to the one before it, as marks and joiners do; shape (len(text),)."""
    classes = char_classes(text)
    return (classes == _EXTEND) | (classes == _JOINER)


def is_unspaced(text: str) -> NDArray[np.bool_]:
    """For each character, whether it is of a script written without spaces between words; shape (len(text),)."""
    return char_classes(text) == _UNSPACED


def _char_class(char: str) -> int:
    if char.isspace():
        return _SPACE
    if char in _BY_USE:
        return _BY_USE[char]
    category = unicodedata.category(char)
    if category in _BY_CATEGORY:
        return _BY_CATEGORY[category]
    if category[0] in "LN" and any(low <= ord(char) <= high for low, high in _UNSPACED_RANGES):
        return _UNSPACED
    return _BY_CATEGORY.get(category[0], _OTHER)


# The class of each character; shape (len(text),).
char_classes = CharTable(_char_class)
