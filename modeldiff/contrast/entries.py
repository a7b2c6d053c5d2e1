"""From what held to what a person reads: the context in words, what either model says there and elsewhere, texts, and
where its feature is represented.

Rates are of the documents that verify, never of those that discovered. Texts are drawn at random among them.

Legend: P places, C contexts, F features.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import sparse

from modeldiff.contrast.contexts import Context, Contexts, jaccard
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.discovery import Outcome, Verified, any_of
from modeldiff.contrast.words import Said
from modeldiff.crosscoder import Crosscoder
from modeldiff.linear.verdict import MOSTLY_DIFFER, Scale, verdicts
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json

Bools = NDArray[np.bool_]

# Texts shown, and characters of each before the place.
SHOWN, SHOWN_CHARS = 2, 160
# Words that say where a context holds, and the least share of their places and its places that both hold at.
WORDS_THERE, _LEAST_THERE = 6, 0.05
# The feature that an entry is about, when the entry is no feature itself: one that holds at so much of its places.
_LEAST_OVERLAP = 0.2
# What a verdict says (linear/verdict.py).
_WHERE = {
    "exclusive": "in {owner}; no linear analogue found in {other}",
    "predictable": "in both models, used differently",
    "undecided": "in {owner}; in {other} less than is usual for shared features",
    "unknown": "not readable from either model's activations",
    None: "not measured",
}


def context_json(context: Context) -> dict[str, Any]:
    """`kind`, and `name` or, of a feature, `id`."""
    if context.kind == "feature":
        return {"kind": "feature", "id": int(context.name)}
    return {"kind": context.kind, "name": context.name}


def entry_json(
    one: Verified,
    rank: int,
    outcome: Outcome,
    continuations: Continuations,
    said: Said,
    words_before: Contexts,
    seed: int,
) -> dict[str, Any]:
    """One difference, as contrast.json holds it and `--json` prints it.

    Args:
        words_before: word contexts, also where words are not compared: they say where a feature fires.
        seed: of the texts shown.
    """
    contexts, candidate = outcome.contexts, one.candidate
    on_P = contexts.on_CP[candidate.context].toarray()[0] > 0
    here, elsewhere = on_P & ~outcome.first_P, ~on_P & ~outcome.first_P
    documents = [continuations.places[i].document for i in np.flatnonzero(on_P)]
    sources = Counter(continuations.documents[document].source for document in documents)
    any_word: dict[str, float] = {}
    for suffix, places_P in (("", here), ("_elsewhere", elsewhere)):
        for side in SIDES:
            any_word[f"{side}{suffix}"] = _mean(any_of(said, candidate.words[one.side], side)[places_P])
    return {
        "rank": rank,
        "context": context_json(contexts.which[candidate.context]),
        "also": [context_json(contexts.which[c]) for c in candidate.same],
        "feature": feature_of(outcome, one),
        "verified": one.verified,
        "side": one.side.upper(),
        "effect": one.effect.value,
        "low": one.effect.low(),
        "high": one.effect.high(),
        "p": one.p,
        "any_word": any_word,
        "a_says": _says(said, candidate.words["a"], "a", here, elsewhere),
        "b_says": _says(said, candidate.words["b"], "b", here, elsewhere),
        "places": len(documents),
        "documents": len(set(documents)),
        "sources": {
            source: count / len(documents)
            for source, count in sorted(sources.items(), key=lambda one: (-one[1], one[0]))
        },
        "words_there": words_there(words_before, on_P),
        "texts": _texts(continuations, here, f"{seed}:{rank}"),
    }


def _says(said: Said, words: list[int], side: str, here: Bools, elsewhere: Bools) -> list[dict[str, Any]]:
    """The words that a model says more here, in the verifying half too, largest difference first."""
    found = []
    other = OTHER[side]
    for word in words:
        rates = {}
        for one in SIDES:
            column = said.by_side[one][:, word].toarray()[:, 0]
            rates[one], rates[f"{one}_elsewhere"] = _mean(column[here]), _mean(column[elsewhere])
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
    best = int(overlap_C.argmax())
    return int(contexts.which[best].name) if overlap_C[best] >= _LEAST_OVERLAP else None


def words_there(words_before: Contexts, on_P: Bools) -> list[str]:
    """The words before the places of a context that tell them from the other places, best first; none if it holds
    everywhere."""
    if on_P.all() or not len(words_before):
        return []
    overlap_C = jaccard(words_before.on_CP, sparse.csr_matrix(on_P[None].astype(np.float32)))
    best = np.argsort(-overlap_C, kind="stable")[:WORDS_THERE]
    return [words_before.which[c].name for c in best.tolist() if overlap_C[c] > _LEAST_THERE]


def _texts(continuations: Continuations, here: Bools, seed: str) -> list[dict[str, str]]:
    """Texts before random places here, with what both models said."""
    at = np.flatnonzero(here).tolist()
    return [
        {
            "before": continuations.before(i)[-SHOWN_CHARS:],
            **{side: continuations.places[i].said[side][0] for side in SIDES},
        }
        for i in random.Random(seed).sample(at, min(SHOWN, len(at)))
    ]


class Represented:
    """The measured features of a crosscoder.

    Raises:
        DamagedError: a file of the artifact is missing or damaged.
    """

    def __init__(self, features: Artifact, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        self._scales = read_json(features.file("features.json"))["scales"]
        self._arrays = load_file(features.file("statistics.safetensors"))
        self._twins = load_file(features.file("twins.safetensors"))

    @property
    def mostly_differ_F(self) -> NDArray[np.bool_]:
        """(F,) features whose top examples are mostly places where the two models read different tokens."""
        shares = self._arrays.get("tokens_differ", np.full(self._crosscoder.n_features, np.nan))
        return shares > MOSTLY_DIFFER  # False where NaN

    def of(self, feature: int) -> dict[str, Any]:
        """partition; r2_a, r2_b: held-out share of its activation that is read from either model (null: not measured);
        owner: the model that explains more of it; verdict: on what the other model explains (linear/verdict.py); twin:
        the feature of another partition that fires most alike; where: all of it in words."""
        partition = self._crosscoder.partition_of(feature)
        r2 = {side: self._number(f"r2_{side}", feature) for side in SIDES}
        a_owns = partition == "A" or (partition == "shared" and (r2["a"] or 0) >= (r2["b"] or 0))
        owner = "a" if a_owns else "b"
        other = OTHER[owner]
        verdict = None
        if r2["a"] is not None and r2["b"] is not None and self._scales:
            verdict = str(verdicts(np.array([r2[owner]]), np.array([r2[other]]), Scale(**self._scales[owner]))[0])
        twin, correlation = self._twins["feature"][feature, 0], self._twins["correlation"][feature, 0]
        return {
            "partition": partition,
            "r2_a": r2["a"],
            "r2_b": r2["b"],
            "owner": owner.upper(),
            "verdict": verdict,
            "twin": {"feature": int(twin), "correlation": float(correlation)} if twin >= 0 else None,
            "where": _WHERE[verdict].format(owner=owner.upper(), other=other.upper()),
        }

    def _number(self, name: str, feature: int) -> float | None:
        values = self._arrays.get(name)
        return None if values is None or math.isnan(values[feature]) else float(values[feature])
