"""Words of continuations: which are said, by which model, at which place.

A word is a run of letters, digits and apostrophes, in lower case; scripts without spaces give pairs of characters
instead (texts/words.py knows them). What begins or ends in the middle of a word is not one.

Legend: P places, V words of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from modeldiff.texts.words import is_unspaced
from modeldiff.workspace.plan import SIDES

_RUN = re.compile(r"\w+(?:['\u2019]\w+)*")
_LEADING, _TRAILING = re.compile(r"^\w+"), re.compile(r"\w+$")


@dataclass(frozen=True)
class Said:
    """What both models say at each place."""

    names: list[str]
    """(V,) the words."""
    by_side: dict[str, sparse.csr_matrix]
    """(P, V) float32: share of the draws at a place in which the word is said."""

    @property
    def difference(self) -> sparse.csr_matrix:
        """(P, V): A's share minus B's."""
        return (self.by_side["a"] - self.by_side["b"]).tocsr()

    def rows(self, places: np.ndarray) -> Said:
        """Some of the places, in the order given."""
        return Said(self.names, {side: self.by_side[side][places] for side in SIDES})


def words_of(text: str) -> list[str]:
    """The words of a text, in order, in lower case."""
    found: list[str] = []
    for run in _RUN.findall(text.lower().replace("\u2019", "'")):
        # No script written without spaces is ASCII; to ask the table about every short word costs more than all else.
        if not run.isascii() and is_unspaced(run).any():
            found += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        else:
            found.append(run)
    return found


def whole_words(text: str, *, begins: bool) -> str:
    """The text without a last word that may be cut off; unless it begins an answer, without the rest of a word that it
    begins with."""
    if not begins and (leading := _LEADING.match(text)) and not is_unspaced(leading[0]).any():
        text = text[leading.end() :]
    trailing = _TRAILING.search(text)
    return text[: trailing.start()] if trailing and not is_unspaced(trailing[0]).any() else text


def said_words(said: dict[str, Sequence[Sequence[str]]], begins: Sequence[bool], *, least: int) -> Said:
    """The words of both models' continuations.

    Args:
        said: by side, for each place, the texts of its draws (as many at every place).
        begins: for each place, whether what is said there begins an answer.
        least: a word of the vocabulary is said in so many continuations.
    """
    draws = len(next(iter(said.values()))[0])
    texts = [
        whole_words(text, begins=begin) for side in SIDES for texts, begin in zip(said[side], begins, strict=True)
        for text in texts
    ]  # fmt: skip
    vectorizer = CountVectorizer(analyzer=words_of, binary=True, min_df=least, dtype=np.float32)
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:  # no word is said so often
        return Said([], {side: sparse.csr_matrix((len(begins), 0), dtype=np.float32) for side in SIDES})
    each = sparse.kron(sparse.identity(len(begins), format="csr"), np.full((1, draws), 1 / draws), format="csr")
    half = matrix.shape[0] // 2
    parts = dict(zip(SIDES, (matrix[:half], matrix[half:]), strict=True))
    return Said(
        vectorizer.get_feature_names_out().tolist(),
        {side: sparse.csr_matrix(each @ parts[side], dtype=np.float32) for side in SIDES},
    )
