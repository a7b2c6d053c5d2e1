"""From what held to what a person reads: the context in words, what either model says there and elsewhere, texts, and
where its feature is represented.

Rates are of the documents that verify, never of those that discovered. Texts are drawn at random among them.

Legend: P places, C contexts.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
from scipy import sparse

from modeldiff.catalogue.table import FeatureRow
from modeldiff.contrast.contexts import Context, Contexts, jaccard
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.discovery import Outcome, Verified, any_of
from modeldiff.contrast.statistics import Bools, Floats
from modeldiff.contrast.words import Said
from modeldiff.sides import OTHER, SIDES

# Texts shown, and characters of each before the place.
SHOWN, SHOWN_CHARS = 5, 160
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
    rank: int, outcome: Outcome, continuations: Continuations, said: Said, words_before: Contexts, seed: int
) -> dict[str, Any]:
    """One difference, as contrast.json holds it and `--json` prints it.

    words_before: word contexts, also where words are not compared: they say where a feature fires. seed: of the texts
    shown. Fields:
        rank                        from 1 on, among all that were tested
        context, also               `context_json`; of others that hold at the same places, or say the same
        feature                     see `feature_of`
        verified                    whether it held on the documents that verify, of which all rates are
        side                        the model that says the words more (A or B)
        effect, low, high, p        how much more often it says any of them; 95 %; probability of so much by chance
        any_word                    by side, and `a_elsewhere`, `b_elsewhere`: how often a model says any of them
        a_says, b_says              words, with the same four rates of each
        places, documents, sources  number where the context holds; share of them by source
        words_there                 words before these places that tell them from others
        texts                       before places here (`before`), with what A and B said (`a`, `b`)
        represented                 see `represented`; null: no feature
        cause                       see `causes_of` (cause.py); null: not measured
    """
    contexts, one = outcome.contexts, outcome.entries[rank - 1]
    candidate = one.candidate
    on_P = contexts.on(candidate.context)
    here, elsewhere = on_P & ~outcome.first_P, ~on_P & ~outcome.first_P
    documents = [continuations.places[i].document for i in np.flatnonzero(on_P)]
    sources = Counter(continuations.documents[document].source for document in documents)
    by_share = sorted(sources.items(), key=lambda one: (-one[1], one[0]))
    any_word = {
        f"{side}{suffix}": _mean(any_of(said, candidate.words[one.side], side)[places_P])
        for suffix, places_P in (("", here), ("_elsewhere", elsewhere))
        for side in SIDES
    }
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
        "sources": {source: count / len(documents) for source, count in by_share},
        "words_there": words_there(words_before, on_P),
        "texts": _texts(continuations, here, f"{seed}:{rank}"),
        "represented": None,
        "cause": None,
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


def _mean(values: Floats) -> float:
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
    shown = random.Random(seed).sample(at, min(SHOWN, len(at)))
    said = [{side: continuations.places[i].said[side][0] for side in SIDES} for i in shown]
    return [{"before": continuations.before(i)[-SHOWN_CHARS:], **one} for i, one in zip(shown, said, strict=True)]


def represented(row: FeatureRow) -> dict[str, Any]:
    """What was measured of a feature: partition; r2_a, r2_b: held-out share of its activation that is read from either
    model (null: not measured); owner: the model that explains more of it; verdict: on what the other model explains
    (linear/verdict.py); twin: the feature of another partition that fires most alike; where: all of it in words."""
    a_owns = row.partition == "A" or (row.partition == "shared" and (row.r2_a or 0) >= (row.r2_b or 0))
    owner, other = ("A", "B") if a_owns else ("B", "A")
    verdict = None if row.r2_a is None or row.r2_b is None else row.verdict
    twin = row.twins[0] if row.twins else None
    return {
        "partition": row.partition,
        "r2_a": row.r2_a,
        "r2_b": row.r2_b,
        "owner": owner,
        "verdict": verdict,
        "twin": {"feature": twin.id, "correlation": twin.correlation} if twin else None,
        "where": _WHERE[verdict].format(owner=owner, other=other),
    }
