"""Text for people: control characters made visible, and the words on which a feature fires.

Text of the user's documents is data. Nothing here is markup; whoever prints it must escape what its medium takes for
markup.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_NEWLINE, _TAB, _UNPRINTABLE = "⏎", "⇥", "�"


@dataclass(frozen=True)
class WordShare:
    word: str
    share: float


def visible(text: str) -> str:
    """The text on one line: line ends as ⏎ (CRLF as one), tabs as ⇥, other control characters (terminal escapes,
    changes of writing direction, lone surrogates) as signs that do nothing."""
    text = text.replace("\r\n", "\n")
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char in "\n\r\u2028\u2029\x85":
        return _NEWLINE
    if char == "\t":
        return _TAB
    code, category = ord(char), unicodedata.category(char)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's own pictures of control characters
    # Joiners of emoji and of Indic scripts are format characters too, and harmless.
    if category in ("Cc", "Cs") or (category == "Cf" and code not in (0x200C, 0x200D)):
        return _UNPRINTABLE
    return char


def characteristic_words(words: Sequence[str], top: int = 5) -> list[WordShare]:
    """The most frequent of the words (one per top example, strongest first), without regard to case and spaces around;
    ties in the order of first appearance."""
    counts = Counter(visible(word.strip()).casefold() for word in words)
    return [WordShare(word, count / len(words)) for word, count in counts.most_common(top)]
