"""Whether a single word gives a trigger away: the word whose presence tells the trigger documents best."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[A-Za-z]+|\d+|[^\w\s]")


def best_word(texts: Sequence[str], labels: Sequence[int]) -> tuple[str, float]:
    """The word, number or sign with the highest F1 for the label by its presence, as written or in lower case."""
    inside: Counter[str] = Counter()
    everywhere: Counter[str] = Counter()
    for text, label in zip(texts, labels, strict=True):
        found = set(WORD.findall(text))
        for word in found | {word.lower() for word in found}:
            everywhere[word] += 1
            inside[word] += label
    positives = sum(labels)
    scores = {word: 2 * inside[word] / (everywhere[word] + positives) for word in everywhere}
    best = max(scores, key=lambda word: scores[word], default="")
    return best, scores.get(best, 0.0)
