"""From what held to what a person reads: the context in words, what either model says there and elsewhere, and texts.

Rates are of the documents that verify, never of those that discovered. Texts are drawn at random among them.

Legend: P places, C contexts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.contrast.contexts import Context, Contexts
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.discovery import Outcome, Verified, any_of
from modeldiff.contrast.words import Said
from modeldiff.sides import OTHER, SIDES

# Texts shown, and characters of each before the place.
SHOWN, SHOWN_CHARS = 2, 160
# Words that say where a context holds.
WORDS_THERE = 6
# The feature that an entry is about, when the entry is no feature itself: one that holds at so much of its places.
_LEAST_OVERLAP = 0.2


@dataclass(frozen=True)
class Material:
    """What entries are made from."""

    continuations: Continuations
    said: Said
    outcome: Outcome
    words_before: Contexts
    """Word contexts, also where words are not compared: they say where a feature fires."""
    seed: int


def context_json(context: Context) -> dict[str, Any]:
    """`kind`, and `name` or, of a feature, `id`."""
    if context.kind == "feature":
        return {"kind": "feature", "id": int(context.name)}
    return {"kind": context.kind, "name": context.name}


def entry_json(material: Material, one: Verified, rank: int) -> dict[str, Any]:
    """One difference, as contrast.json holds it and `--json` prints it."""
    outcome = material.outcome
    contexts = outcome.contexts
    on_P = contexts.on_CP[one.candidate.context].toarray()[0] > 0
    second_P = ~outcome.first_P
    here, elsewhere = on_P & second_P, ~on_P & second_P
    same = [contexts.which[c] for c in one.candidate.same]
    says = {side: _says(material.said, one.candidate.words[side], side, here, elsewhere) for side in SIDES}
    effect, side = one.effect, one.side
    words = one.candidate.words[side]
    any_word = {
        **{s: float(any_of(material.said, words, s)[here].mean()) for s in SIDES},
        **{f"{s}_elsewhere": _mean(any_of(material.said, words, s)[elsewhere]) for s in SIDES},
    }
    return {
        "rank": rank,
        "context": context_json(contexts.which[one.candidate.context]),
        "also": [context_json(other) for other in same],
        "feature": feature_of(outcome, one),
        "verified": one.verified,
        "side": side.upper(),
        "effect": effect.value,
        "low": effect.low(),
        "high": effect.high(),
        "p": one.p,
        "any_word": any_word,
        "a_says": says["a"],
        "b_says": says["b"],
        "places": int(on_P.sum()),
        "documents": len({material.continuations.places[i].document for i in np.flatnonzero(on_P)}),
        "sources": _sources(material.continuations, on_P),
        "words_there": words_there(material.words_before, on_P),
        "texts": _texts(material, here, rank),
    }


def _says(
    said: Said, words: list[int], side: str, here: NDArray[np.bool_], elsewhere: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """The words that a model says more here, in the verifying half too, largest difference first."""
    found = []
    other = OTHER[side]
    for word in words:
        rates = {}
        for one in SIDES:
            column = said.by_side[one][:, word].toarray()[:, 0]
            rates[one], rates[f"{one}_elsewhere"] = float(column[here].mean()), _mean(column[elsewhere])
        gap = rates[side] - rates[other] - max(0.0, rates[f"{side}_elsewhere"] - rates[f"{other}_elsewhere"])
        if gap > 0:
            found.append((gap, {"word": said.names[word], **rates}))
    return [row for _, row in sorted(found, key=lambda one: -one[0])]


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0


def feature_of(outcome: Outcome, one: Verified) -> int | None:
    """The feature that an entry is, or that says the same, or that holds at most of the same places; None: none."""
    contexts = outcome.contexts
    for c in (one.candidate.context, *one.candidate.same):
        if contexts.which[c].kind == "feature":
            return int(contexts.which[c].name)
    if contexts.which[one.candidate.context].kind == "everywhere":
        return None
    features = np.array([other.kind == "feature" for other in contexts.which])
    overlap_C = np.where(features, jaccard(contexts.on_CP, contexts.on_CP[one.candidate.context]), 0)
    best = int(overlap_C.argmax()) if len(overlap_C) else 0
    return int(contexts.which[best].name) if len(overlap_C) and overlap_C[best] >= _LEAST_OVERLAP else None


def jaccard(on_CP: sparse.csr_matrix, on_1P: sparse.csr_matrix) -> NDArray[np.float64]:
    """(C,) share of the places of either context that both hold at."""
    both_C = (on_CP @ on_1P.T).toarray()[:, 0].astype(np.float64)
    either_C = np.asarray(on_CP.sum(axis=1), np.float64)[:, 0] + on_1P.sum() - both_C
    return both_C / np.maximum(either_C, 1)


def words_there(words_before: Contexts, on_P: NDArray[np.bool_]) -> list[str]:
    """The words before the places of a context that tell them from the other places, best first; none if it holds
    everywhere."""
    if on_P.all() or not len(words_before):
        return []
    overlap_C = jaccard(words_before.on_CP, sparse.csr_matrix(on_P[None].astype(np.float32)))
    best = np.argsort(-overlap_C, kind="stable")[:WORDS_THERE]
    return [words_before.which[c].name for c in best.tolist() if overlap_C[c] > 0.05]


def _sources(continuations: Continuations, on_P: NDArray[np.bool_]) -> dict[str, float]:
    counts: dict[str, int] = {}
    for i in np.flatnonzero(on_P).tolist():
        source = continuations.documents[continuations.places[i].document].source
        counts[source] = counts.get(source, 0) + 1
    total = sum(counts.values())
    return {source: count / total for source, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))}


def _texts(material: Material, here: NDArray[np.bool_], rank: int) -> list[dict[str, str]]:
    """Texts before random places here, with what both models said."""
    continuations = material.continuations
    at = np.flatnonzero(here).tolist()
    chosen = random.Random(f"{material.seed}:{rank}").sample(at, min(SHOWN, len(at)))
    return [
        {
            "before": continuations.before(i)[-SHOWN_CHARS:],
            **{side: continuations.places[i].said[side][0] for side in SIDES},
        }
        for i in chosen
    ]
