"""Contexts: for each place, whether something is so there. Everywhere, a source of texts, a word before the place, or
a feature of a crosscoder (features.py).

Legend: P places, C contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from modeldiff.contrast.words import words_of

# Words before a place that count as its context.
WORDS_BEFORE = 64


@dataclass(frozen=True)
class Context:
    """One of them."""

    kind: str
    """everywhere, source, word or feature."""
    name: str
    """The source's label, the word, the feature's number; empty for everywhere."""


@dataclass(frozen=True)
class Contexts:
    """Where each of them holds."""

    which: list[Context]
    """(C,)"""
    on_CP: sparse.csr_matrix
    """(C, P) float32, 1 where it holds."""

    def __len__(self) -> int:
        return len(self.which)

    def often_enough(self, first_P: np.ndarray, *, least: int, most: float) -> Contexts:
        """Those that hold on `least` places of either half and at most a share `most` of each. Everywhere stays.

        Args:
            first_P: True for the places of the first half.
        """
        keep = np.ones(len(self), bool)
        for part_P in (first_P, ~first_P):
            count_C = np.asarray(self.on_CP[:, part_P].sum(axis=1))[:, 0]
            keep &= (count_C >= least) & (count_C <= most * part_P.sum())
        keep |= np.array([one.kind == "everywhere" for one in self.which], bool)
        return Contexts([one for one, kept in zip(self.which, keep, strict=True) if kept], self.on_CP[keep])


def joined(parts: Sequence[Contexts]) -> Contexts:
    """All contexts of all parts."""
    return Contexts(
        [one for part in parts for one in part.which], sparse.vstack([part.on_CP for part in parts], format="csr")
    )


def everywhere(places: int) -> Contexts:
    """The one that always holds."""
    return Contexts([Context("everywhere", "")], sparse.csr_matrix(np.ones((1, places), np.float32)))


def sources(labels: Sequence[str]) -> Contexts:
    """One for each label of the places' texts, where there are several."""
    names = sorted(set(labels))
    if len(names) < 2:
        return Contexts([], sparse.csr_matrix((0, len(labels)), dtype=np.float32))
    rows = [names.index(label) for label in labels]
    on_CP = sparse.csr_matrix(
        (np.ones(len(labels), np.float32), (rows, np.arange(len(labels)))), shape=(len(names), len(labels))
    )
    return Contexts([Context("source", name) for name in names], on_CP)


def words(before: Sequence[str], *, least: int) -> Contexts:
    """One for each word among the last WORDS_BEFORE words before a place.

    Args:
        before: the text before each place.
        least: a word stands before so many places.
    """
    vectorizer = CountVectorizer(
        analyzer=lambda text: words_of(text)[-WORDS_BEFORE:], binary=True, min_df=least, dtype=np.float32
    )
    try:
        on_PC = vectorizer.fit_transform(before)
    except ValueError:  # no word stands there so often
        return Contexts([], sparse.csr_matrix((0, len(before)), dtype=np.float32))
    return Contexts([Context("word", str(name)) for name in vectorizer.get_feature_names_out()], on_PC.T.tocsr())
