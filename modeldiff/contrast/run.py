"""The contrast stage: continuations, and a crosscoder if there is one, in; a `contrast` artifact out.

Layout (normative):
    contrast.json
        format
        continuations, crosscoder, features    what was compared; null: there was none
        models                      as in the continuations
        places, documents, words    number
        contexts                    number compared, by kind (word, source, everywhere, feature): those that hold often
                                    enough
        rate, smallest              as asked for: false discoveries, least effect
        candidates, found           number of entries that were tested, and that held
        expected_by_chance          entries found on average over `worlds` unrelated ones
        worlds
        differences[]               those that held, in order, as many as asked for: see `entry_json` (entries.py)
        not_verified[]              likewise the candidates that did not hold
    places.safetensors              entry i of differences, then not_verified, holds at the places
                                    indices[offsets[i]:offsets[i + 1]]: to look them up, or to hold them against labels
        indices (I,) int32          lines of the continuations' places.jsonl, from 0 on
        offsets (E + 1,) int64
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from safetensors.numpy import save

from modeldiff.catalogue.contrast import FORMAT, NAME, PLACES
from modeldiff.console import progress, say
from modeldiff.contrast import contexts as make
from modeldiff.contrast.contexts import Contexts
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.dictionary import Dictionary, crosscoder_for, features_of
from modeldiff.contrast.discovery import PERMUTATIONS, WORLDS, Outcome, contrast
from modeldiff.contrast.entries import entry_json
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.contrast.words import said_words
from modeldiff.errors import InputError
from modeldiff.lm.device import device_and_dtype
from modeldiff.workspace import Artifact, Order, Work, Workspace
from modeldiff.workspace.ranks import Ranks, produce_together, ranks
from modeldiff.workspace.stage import Build

SCHEMA = 6
# In each half so many documents that they can be told from one another.
_LEAST_DOCUMENTS = 4
_FEW_DOCUMENTS = 100


def run(settings: ContrastSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Compare what both models say where contexts hold with what they say elsewhere. Raises InputError: there are no
    continuations, or of too few documents, or the crosscoder is of other models, or a model has changed since it
    continued the texts."""
    ours = ranks()
    return produce_together(ours, workspace, partial(_prepare, settings, workspace, ours), name=name, force=force)


def _prepare(settings: ContrastSettings, workspace: Workspace, ours: Ranks) -> tuple[Order, Build]:
    source = workspace.find("continuations", settings.continuations)
    crosscoder = crosscoder_for(workspace, source, settings.crosscoder) if "feature" in settings.contexts else None
    features = features_of(workspace, crosscoder) if crosscoder else None
    # Kept as it was: there may be one when this is made again.
    settings = settings if crosscoder else replace(settings, crosscoder="none")
    given = {"continuations": source, "crosscoder": crosscoder, "features": features}
    device, dtype, names = device_and_dtype(settings)

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(names)
        continuations, dictionary = Continuations(source), None
        if crosscoder:
            models = continuations.models(workspace, device, dtype, trust_remote_code=settings.trust_remote_code)
            dictionary = Dictionary(crosscoder, features, continuations, models, settings, work)
        outcome, found = _compare(continuations, dictionary, settings)
        refs = {kind: artifact and artifact.ref for kind, artifact in given.items()}
        work.write_json(NAME, {"format": FORMAT, **refs, **found})
        work.write_bytes(PLACES, _places_of(outcome, found["differences"] + found["not_verified"]))
        metrics = {key: found[key] for key in ("found", "expected_by_chance", "candidates")}
        return {**metrics, "contexts": len(outcome.contexts)}

    inputs = {kind: artifact.as_input() for kind, artifact in given.items() if artifact}
    order = Order("contrast", settings, inputs, SCHEMA)
    # One process compares; the others have nothing to do.
    return order, build if ours.first else lambda _work: {}


def _compare(
    continuations: Continuations, dictionary: Dictionary | None, settings: ContrastSettings
) -> tuple[Outcome, dict[str, Any]]:
    """(what was found; how contrast.json describes it)."""
    places = continuations.places
    document_P = np.array([place.document for place in places])
    documents = len(np.unique(document_P))
    if documents < _LEAST_DOCUMENTS:
        raise InputError(
            f"{continuations.artifact.ref} is of {documents} documents: at least {_LEAST_DOCUMENTS} are needed, two "
            "that discover and two that verify; give more --texts"
        )
    said = said_words(places)
    words_before = make.words([continuations.before(i) for i in range(len(places))], least=2 * settings.least)
    contexts = _contexts(continuations, words_before, dictionary, settings)
    if documents < _FEW_DOCUMENTS:
        say(f"{documents} documents are few: only differences that show in many of them can be told from chance")
    with progress("contrast", PERMUTATIONS + WORLDS, "permutations") as bar:
        outcome = contrast(contexts, said, document_P, settings, note=bar.advance)
    compared = Counter(one.kind for one in outcome.contexts.which)
    kinds = ", ".join(f"{count:,} of kind {kind}" for kind, count in compared.items())
    say(f"{len(said.names):,} words; contexts often enough: {kinds}")
    ranks = range(1, len(outcome.entries) + 1)
    entries = [entry_json(rank, outcome, continuations, said, words_before, settings.seed) for rank in ranks]
    if dictionary:
        dictionary.explain(outcome, entries)
    return outcome, {
        "models": continuations.info["models"],
        "places": len(places),
        "documents": len(continuations.documents),
        "contexts": dict(compared),
        "words": len(said.names),
        "rate": settings.rate,
        "smallest": settings.smallest,
        "candidates": len(entries),
        "found": outcome.found,
        "expected_by_chance": outcome.chance,
        "worlds": WORLDS,
        "differences": [one for one in entries if one["verified"]][: settings.top],
        "not_verified": [one for one in entries if not one["verified"]],
    }


def _contexts(
    continuations: Continuations, words_before: Contexts, dictionary: Dictionary | None, settings: ContrastSettings
) -> Contexts:
    """Those of the kinds asked for, simple ones first."""
    places = continuations.places
    parts = [make.none(len(places))]
    if "everywhere" in settings.contexts:
        parts.append(make.everywhere(len(places)))
    if "source" in settings.contexts:
        parts.append(make.sources([continuations.documents[place.document].source for place in places]))
    if "word" in settings.contexts:
        parts.append(words_before)
    if dictionary:
        parts.append(dictionary.compared())
    elif "feature" in settings.contexts:
        say("no crosscoder of these models: words, sources and everywhere alone (`modeldiff train` makes one)")
    return make.joined(parts)


def _places_of(outcome: Outcome, entries: list[dict[str, Any]]) -> bytes:
    """places.safetensors."""
    candidates = [outcome.entries[one["rank"] - 1].candidate for one in entries]
    found = [np.flatnonzero(outcome.contexts.on(one.context)).astype(np.int32) for one in candidates]
    indices = np.concatenate([np.zeros(0, np.int32), *found])
    return save({"indices": indices, "offsets": np.cumsum([0, *map(len, found)])})
