"""Which places of the documents are continued: some drawn evenly, the others where the models' next words differ.

Even places show everyday rates; a habit shows where its first word is due, and there the models diverge. The second
kind is drawn in proportion to the square of the divergence (divergence.py).

Legend: N candidate places of a document.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modeldiff.contrast.documents import Document


@dataclass(frozen=True)
class Place:
    """One place that both models continue from."""

    document: int
    """Position in the list of documents."""
    candidate: int
    """Which of the document's candidate places."""
    divergence: float
    """Of the two models' next words there, bits."""
    drawn: str
    """uniform, divergence, or given (the end of a prompt or of a user's message)."""


def choose_places(
    documents: list[Document], divergence_N: NDArray[np.float32], *, places: int, uniform: float, seed: int
) -> list[Place]:
    """About `places` places, as many of each document as of any other, in the order of the documents.

    Args:
        divergence_N: of the candidates of all documents, in order.
        uniform: share of the places that is drawn evenly.
    """
    start = np.concatenate([[0], np.cumsum([len(document.ends) for document in documents])])
    each = max(1, round(places / max(1, len(documents))))
    chosen: list[Place] = []
    owed = 0.0  # of even places, carried over from document to document
    for number, document in enumerate(documents):
        of_candidate = divergence_N[start[number] : start[number + 1]].astype(float).tolist()
        rng = random.Random(f"{seed}:places:{document.number}")
        if document.given:
            picked = [(i, "given") for i in range(len(document.ends))][:each]
        else:
            count = min(each, len(document.ends))
            owed += uniform * count
            evenly = min(count, int(owed + 1e-9))
            owed -= evenly
            picked = _pick(of_candidate, evenly, count - evenly, rng)
        chosen += [Place(number, i, of_candidate[i], how) for i, how in sorted(picked)]
    return chosen


def _pick(of_candidate: list[float], evenly: int, differing: int, rng: random.Random) -> list[tuple[int, str]]:
    left = list(range(len(of_candidate)))
    picked = []
    for how in ["uniform"] * evenly + ["divergence"] * differing:
        weights = [of_candidate[i] ** 2 + 1e-9 for i in left] if how == "divergence" else None
        (one,) = rng.choices(left, weights)
        left.remove(one)
        picked.append((one, how))
    return picked
