"""The words on which a feature fires."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from modeldiff.console import visible


@dataclass(frozen=True)
class WordShare:
    word: str
    share: float


def characteristic_words(words: Sequence[str], top: int = 5) -> list[WordShare]:
    """The most frequent of the words (one per top example, strongest first), without regard to case and spaces around;
    ties in the order of first appearance."""
    counts = Counter(visible(word.strip()).casefold() for word in words)
    return [WordShare(word, count / len(words)) for word, count in counts.most_common(top)]
