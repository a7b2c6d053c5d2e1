"""Words of continuations: which are said, by which model, at which place.

A word is a run of letters, digits and apostrophes, in lower case; scripts without spaces give pairs of characters
instead (texts/words.py knows them). Marks belong to the character before them. What begins or ends in the middle of a
word is not one.

Legend: P places, V words of the vocabulary, N texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from modeldiff.contrast.documents import Place
from modeldiff.sides import SIDES
from modeldiff.texts.words import is_unspaced

# Accents, vowel signs and the like, and the joiners of Persian and Indic scripts; Thai and Lao sara am are letters.
_MARKS = "".join(
    c for c in map(chr, (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0))) if unicodedata.category(c)[0] == "M"
)
_MARKS += "\u200c\u200d\u0e33\u0eb3"
_WORD = rf"\w[\w{_MARKS}]*"
_RUN = re.compile(rf"{_WORD}(?:['\u2019]{_WORD})*")
_CHARACTER = re.compile(rf"[\w'][{_MARKS}]*")
_LEADING = re.compile(rf"['\u2019]?{_RUN.pattern}")
# A word of the vocabulary is said in so many continuations of both models together.
LEAST_SAID = 20


@dataclass(frozen=True)
class Said:
    """What both models say at each place."""

    names: list[str]
    """(V,) the words."""
    by_draw: dict[str, list[sparse.csr_matrix]]
    """By side, of each draw (P, V) float32: 1 where the word is said at a place."""

    @cached_property
    def by_side(self) -> dict[str, sparse.csr_matrix]:
        """(P, V) float32: share of the draws at a place in which the word is said."""
        return {
            side: draws[0] if len(draws) == 1 else (sum(draws[1:], draws[0]) / len(draws)).astype(np.float32).tocsr()
            for side, draws in self.by_draw.items()
        }

    @property
    def difference(self) -> sparse.csr_matrix:
        """(P, V): A's share minus B's."""
        return (self.by_side["a"] - self.by_side["b"]).tocsr()

    def rows(self, places: np.ndarray) -> Said:
        return Said(self.names, {side: [one[places] for one in draws] for side, draws in self.by_draw.items()})


def words_of(text: str) -> list[str]:
    found: list[str] = []
    for run in _RUN.findall(text.lower().replace("\u2019", "'")):
        if run.isascii() or not is_unspaced(run).any():
            found.append(run)
            continue
        for unspaced, part in groupby(_CHARACTER.findall(run), lambda one: bool(is_unspaced(one[0])[0])):
            characters = list(part)
            if unspaced:
                found += ["".join(pair) for pair in pairwise(characters)] or characters
            else:
                found.append("".join(characters).strip("'"))
    return found


def whole_words(text: str, *, begins: bool) -> str:
    """The text without a last word that may be cut off; unless it begins an answer, without the rest of a word that it
    begins with."""
    start, stop = 0, len(text)
    if not begins and (leading := _LEADING.match(text)):
        unspaced = np.flatnonzero(is_unspaced(leading[0]))
        start = int(unspaced[0]) if len(unspaced) else leading.end()
    last = deque(_RUN.finditer(text, start), maxlen=1)
    if last and text[last[0].end() :] in ("", "'", "\u2019"):
        trailing = text[last[0].start() :]
        unspaced = np.flatnonzero(is_unspaced(trailing))
        stop = last[0].start()
        if len(unspaced):
            rest = trailing[unspaced[-1] + 1 :]
            stop = len(text) - len(rest.lstrip(_MARKS))
    return text[start:stop]


def said_words(places: Sequence[Place], *, least: int = LEAST_SAID) -> Said:
    """The words that are said in at least `least` of both models' continuations. All places have as many draws."""
    said = [(place.given, text) for side in SIDES for place in places for text in place.said[side]]
    names, said_NV = present([whole_words(text, begins=given) for given, text in said], words_of, least)
    draws, half = len(said) // (2 * len(places)), len(said) // 2
    parts = zip(SIDES, (said_NV[:half], said_NV[half:]), strict=True)
    return Said(names, {side: [part[draw::draws] for draw in range(draws)] for side, part in parts})


def present(
    texts: Sequence[str], words_in: Callable[[str], list[str]], least: int
) -> tuple[list[str], sparse.csr_matrix]:
    """(the words V that at least `least` of the texts N have, (N, V) float32 which text has which)."""
    vectorizer = CountVectorizer(analyzer=words_in, binary=True, min_df=least, dtype=np.float32)
    try:
        on_NV = vectorizer.fit_transform(texts)
    except ValueError:  # no text, or no word that so many have
        return [], sparse.csr_matrix((len(texts), 0), dtype=np.float32)
    return vectorizer.get_feature_names_out().tolist(), on_NV
