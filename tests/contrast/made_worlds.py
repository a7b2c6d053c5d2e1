"""Worlds of known truth: documents with places, contexts that hold there, and two models that say words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from modeldiff.contrast.contexts import Context, Contexts
from modeldiff.contrast.words import Said


@dataclass
class World:
    """What `contrast` takes."""

    contexts: Contexts
    said: Said
    document_P: np.ndarray


def made_world(
    seed: int,
    *,
    documents: int = 300,
    per_document: int = 2,
    words: int = 120,
    contexts: int = 40,
    density: float = 0.1,
    planted: dict[int, dict[str, float]] | None = None,
    together: float = 0.0,
    unequal: float = 0.0,
    everywhere: float = 0.0,
    repeats: int = 0,
) -> World:
    """A world in which nothing differs, apart from what is planted.

    Args:
        planted: context -> {"a" or "b": how much more often that model says the word of the context's number there}.
        together: share of a document's words that all its places have in common (they are not independent).
        unequal: where context c holds, both models say word c so much more often.
        everywhere: model A says the last word so much more often at all places.
        repeats: the first document's places are there so many times more, all the same.
    """
    rng = np.random.default_rng(seed)
    document_P = np.repeat(np.arange(documents), per_document)
    places = len(document_P)
    on_CK = rng.random((contexts, documents)) < density
    on_CP = on_CK[:, document_P]
    rate_V = np.minimum(0.4, 0.02 + 0.5 * rng.random(words) ** 4)
    says = {}
    for side in "ab":
        p_PV = np.repeat(rate_V[None], places, axis=0)
        for c in range(min(contexts, words) if unequal else 0):
            p_PV[on_CP[c], c] += unequal
        for c, by_side in (planted or {}).items():
            p_PV[on_CP[c], c] += by_side.get(side, 0.0)
        if side == "a":
            p_PV[:, -1] += everywhere
        own_PV = rng.random((places, words))
        shared_KV = rng.random((documents, words))
        drawn_PV = np.where(rng.random((places, 1)) < together, shared_KV[document_P], own_PV)
        says[side] = (drawn_PV < p_PV).astype(np.float32)
    if repeats:
        extra = np.concatenate([np.zeros(repeats, np.int64), np.arange(places)])
        document_P, on_CP = document_P[extra], on_CP[:, extra]
        says = {side: one[extra] for side, one in says.items()}
    which = [Context("everywhere", "")] + [Context("word", str(c)) for c in range(contexts)]
    on = np.concatenate([np.ones((1, len(document_P))), on_CP]).astype(np.float32)
    said = Said([f"w{v}" for v in range(words)], {side: [sparse.csr_matrix(one)] for side, one in says.items()})
    return World(Contexts(which, sparse.csr_matrix(on)), said, document_P)
