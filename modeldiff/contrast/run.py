"""The contrast stage: continuations, and a crosscoder if there is one, in; a `contrast` artifact out.

Layout (normative):
    contrast.json        format; continuations, crosscoder, features (references or null); models; places, documents;
                         contexts (number compared, by kind); words (number); rate, smallest; candidates; found;
                         expected_by_chance (on average over `worlds` unrelated ones); differences: the verified
                         ones, in order; not_verified: the candidates that did not hold
    places.safetensors   indices (int32), offsets (int64): entry i of differences, then not_verified, holds at the
                         places indices[offsets[i]:offsets[i + 1]] (lines of the continuations' places.jsonl): to look
                         them up, or to hold them against labels of one's own
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from scipy import sparse

from modeldiff.console import progress, say
from modeldiff.contrast import contexts as make
from modeldiff.contrast.cause import CauseOf, alike, causes_of, generate_variants, plan_causes
from modeldiff.contrast.contexts import Contexts, joined
from modeldiff.contrast.discovery import PERMUTATIONS, Outcome, contrast
from modeldiff.contrast.entries import Material, entry_json
from modeldiff.contrast.features import activations, feature_contexts
from modeldiff.contrast.reading import Reading
from modeldiff.contrast.represented import Represented
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.contrast.stored import FORMAT, NAME, PLACES
from modeldiff.contrast.words import Said
from modeldiff.crosscoder import CrosscoderConfig, load
from modeldiff.errors import InputError
from modeldiff.linear.stitch import find_stitch, load_stitch
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json

SCHEMA = 3
KIND = "contrast"
_CODES = "resume/codes.safetensors"
# In each half so many documents that they can be told from one another.
_LEAST_DOCUMENTS = 4
# Chance worlds that the whole search is done in.
WORLDS = 20
# As in training (paper B.1.4), for a crosscoder that was not trained here.
_OUTLIER_FACTOR = 2.0


def run(
    settings: ContrastSettings,
    workspace: Workspace,
    *,
    name: str | None = None,
    force: bool = False,
    reading: Reading | None = None,
) -> Artifact:
    """Compare what both models say where contexts hold with what they say elsewhere.

    Args:
        reading: of the same continuations, from another contrast of the caller.

    Raises:
        InputError: there are no continuations, or of too few documents, or the crosscoder is of other models, or the
            reading is of other continuations or in another number format.
    """
    source = workspace.find("continuations", settings.continuations)
    crosscoder = crosscoder_for(workspace, source, settings.crosscoder) if "feature" in settings.contexts else None
    inputs: dict[str, Input] = {"continuations": source.as_input()}
    if crosscoder:
        inputs["crosscoder"] = crosscoder.as_input()
    features = features_of(workspace, crosscoder, settings.features)
    if features:
        inputs["features"] = features.as_input()
    stitch = stitch_of(workspace, crosscoder, settings.stitch) if settings.cause else None
    if stitch:
        inputs["stitch"] = stitch.as_input()
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)

    if reading and (reading.source.manifest.digest, reading.dtype) != (source.manifest.digest, dtype):
        raise InputError(
            f"the reading is of {reading.source.ref} in {reading.dtype}, and the contrast of {source.ref} in {dtype}: "
            "make a Reading of these continuations"
        )

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        trust = settings.trust_remote_code
        read = reading or Reading(source, workspace, device=device, dtype=dtype, trust_remote_code=trust)
        return _Build(settings, work, read, crosscoder, features, stitch).run()

    return produce(workspace, Order(KIND, settings, inputs, SCHEMA), build, name=name, force=force)


def crosscoder_for(workspace: Workspace, continuations: Artifact, ref: str | None) -> Artifact | None:
    """The crosscoder called `ref`, or the latest one that was trained on the models of the continuations; None where
    there is none, or `ref` is "none".

    Raises:
        InputError: the one named was trained on other models.
    """
    if ref == "none":
        return None
    if ref is not None:
        named = workspace.find("crosscoder", ref)
        if not _of_models(workspace, named, continuations):
            raise InputError(f"{named.ref} was trained on other models than those of {continuations.ref}")
        return named
    for found in reversed(workspace.artifacts("crosscoder")):
        if _of_models(workspace, found, continuations):
            say(f"features of {found.ref}")
            return found
    return None


def _of_models(workspace: Workspace, crosscoder: Artifact, continuations: Artifact) -> bool:
    trained_on = crosscoder.manifest.inputs["activations"].digest
    wanted = {side: continuations.manifest.inputs[f"model_{side}"].digest for side in SIDES}
    for one in workspace.artifacts("activations"):
        if one.manifest.digest == trained_on:
            found = {side: one.manifest.inputs.get(f"model_{side}") for side in SIDES}
            return all(model is not None and model.digest == wanted[side] for side, model in found.items())
    return False


def features_of(workspace: Workspace, crosscoder: Artifact | None, ref: str | None) -> Artifact | None:
    """The features artifact called `ref`, or the latest of the crosscoder; None: there is none.

    Raises:
        InputError: the one named was made from another crosscoder, or there is no crosscoder.
    """
    if ref is not None:
        named = workspace.find("features", ref)
        if crosscoder is None or named.manifest.inputs["crosscoder"].digest != crosscoder.manifest.digest:
            raise InputError(f"{named.ref} was not made from the crosscoder that is compared")
        return named
    for found in reversed(workspace.artifacts("features") if crosscoder else []):
        if crosscoder and found.manifest.inputs["crosscoder"].digest == crosscoder.manifest.digest:
            return found
    return None


def stitch_of(workspace: Workspace, crosscoder: Artifact | None, ref: str | None) -> Artifact | None:
    """The stitch called `ref`, or the latest of the crosscoder's activations; None: there is none.

    Raises:
        InputError: the one named is of other activations.
    """
    if crosscoder is None:
        return None
    if ref is not None:
        return find_stitch(workspace, crosscoder.manifest.inputs["activations"], ref)
    for found in reversed(workspace.artifacts("stitch")):
        if found.manifest.inputs["activations"].digest == crosscoder.manifest.inputs["activations"].digest:
            return found
    return None


def largest_norms(crosscoder: Artifact, config: CrosscoderConfig) -> dict[str, float]:
    """By side, the largest norm of a pair that the training of a crosscoder would have kept."""
    factor = float(crosscoder.settings.get("outlier_factor", _OUTLIER_FACTOR))
    return {side: config.largest_norm(side, factor) if factor else math.inf for side in SIDES}


def places_of(outcome: Outcome, ranks: list[int]) -> bytes:
    """places.safetensors of the entries with these ranks."""
    found = [outcome.contexts.on_CP[outcome.entries[rank - 1].candidate.context].indices for rank in ranks]
    indices = np.concatenate([np.zeros(0, np.int32), *(np.sort(one) for one in found)]).astype(np.int32)
    return save({"indices": indices, "offsets": np.cumsum([0, *map(len, found)])})


class _Build:
    """One run of the stage."""

    def __init__(
        self,
        settings: ContrastSettings,
        work: Work,
        reading: Reading,
        crosscoder: Artifact | None,
        features: Artifact | None,
        stitch: Artifact | None,
    ) -> None:
        self.settings, self.work, self.reading, self.source = settings, work, reading, reading.source
        self.crosscoder, self.features, self.device = crosscoder, features, reading.device
        self.continuations = reading.continuations
        self.dictionary = load(crosscoder) if crosscoder else None
        self.represented = Represented(features, self.dictionary) if features and self.dictionary else None
        self.stitch = load_stitch(stitch, device=self.device) if stitch else None

    def run(self) -> dict[str, Any]:
        settings, continuations = self.settings, self.continuations
        documents = len({place.document for place in continuations.places})
        if documents < _LEAST_DOCUMENTS:
            raise InputError(
                f"{self.source.ref} is of {documents} documents: at least {_LEAST_DOCUMENTS} are needed, two that "
                "discover and two that verify; give more --texts"
            )
        said = self.reading.said
        words_before = self.reading.words_before(2 * settings.least)
        contexts = self.contexts(words_before)
        compared = Counter(one.kind for one in contexts.which)
        shown = ", ".join(f"{count:,} of kind {kind}" for kind, count in compared.items())
        say(f"{len(said.names):,} words; contexts: {shown}")
        document_P = np.array([place.document for place in continuations.places])
        with progress("contrast", PERMUTATIONS, "permutations") as bar:
            outcome = contrast(
                contexts,
                said,
                document_P,
                rate=settings.rate,
                smallest=settings.smallest,
                least=settings.least,
                most=settings.most,
                seed=settings.seed,
                worlds=WORLDS,
                note=bar.advance,
            )
        material = Material(continuations, said, outcome, words_before, settings.seed)
        entries = [entry_json(material, one, rank) for rank, one in enumerate(outcome.entries, 1)]
        for entry in entries:
            feature = entry["feature"]
            known = self.represented is not None and feature is not None
            entry["represented"] = self.represented.of(feature) if self.represented and known else None
            entry["cause"] = None
        self.add_causes(outcome, entries)
        description = self.description(outcome, said, compared, entries)
        self.work.write_json(NAME, description)
        listed = [*description["differences"], *description["not_verified"]]
        self.work.write_bytes(PLACES, places_of(outcome, [one["rank"] for one in listed]))
        return {
            "found": outcome.found,
            "expected_by_chance": outcome.chance,
            "candidates": len(outcome.entries),
            "contexts": len(outcome.contexts),
        }

    def contexts(self, words_before: Contexts) -> Contexts:
        """All that are asked for, the simplest kinds first."""
        continuations = self.continuations
        places = len(continuations.places)
        labels = [continuations.documents[place.document].source for place in continuations.places]
        made = {
            "everywhere": lambda: make.everywhere(places),
            "source": lambda: make.sources(labels),
            "word": lambda: words_before,
            "feature": self.feature_contexts,
        }
        return joined([make_them() for kind, make_them in made.items() if kind in self.settings.contexts])

    @cached_property
    def all_features(self) -> Contexts:
        """A context for every feature that is active at all."""
        return feature_contexts(self.codes, self.reading.pairs)

    def feature_contexts(self) -> Contexts:
        """Those that are compared."""
        if self.dictionary is None:
            say("no crosscoder of these models: words, sources and everywhere alone (`modeldiff train` makes one)")
            return Contexts([], sparse.csr_matrix((0, len(self.continuations.places)), dtype=np.float32))
        found = self.all_features
        if self.represented is None or self.settings.tokens_differ:
            return found
        differ_F = self.represented.mostly_differ_F
        keep = np.array([not differ_F[int(one.name)] for one in found.which], bool)
        say(f"{int((~keep).sum())} features left out: the models mostly read different tokens there (--tokens-differ)")
        return Contexts([one for one, kept in zip(found.which, keep, strict=True) if kept], found.on_CP[keep])

    def add_causes(self, outcome: Outcome, entries: list[dict[str, Any]]) -> None:
        """Sample again for the listed entries that have a feature."""
        listed = [one for one in entries if one["verified"] and one["feature"] is not None][: self.settings.top]
        if not self.settings.cause or not listed or self.dictionary is None:
            return
        features = {int(one.name): c for c, one in enumerate(self.all_features.which)}
        asked = []
        for entry in listed:
            of_entry = outcome.contexts.on_CP[outcome.entries[entry["rank"] - 1].candidate.context]
            of_feature = self.all_features.on_CP[features[entry["feature"]]]
            asked.append(
                CauseOf(
                    entry["feature"],
                    entry["side"].lower(),
                    {side: [row["word"] for row in entry[f"{side}_says"]] for side in SIDES},
                    of_entry.toarray()[0] > 0,
                    of_feature.toarray()[0] > 0,
                    ~outcome.first_P,
                    alike(self.all_features, entry["feature"]),
                )
            )
        plan = plan_causes(
            asked,
            self.continuations,
            self.dictionary,
            self.reading.pairs,
            self.codes,
            self.reading.readers,
            self.stitch,
            tokens=int(self.source.settings["tokens"]),
            places=self.settings.cause_places,
            seed=self.settings.seed,
        )
        say(f"cause: {len(plan.places):,} places of {len(listed)} entries again, with features removed and added")

        def sample(side: str) -> None:
            name = f"resume/cause-{side}.json"
            if not self.work.has(name):
                lm = self.reading.model(side)
                with progress(f"cause in {side.upper()}", len(plan.places), "places") as bar:
                    self.work.write_json(name, {"texts": generate_variants(lm, side, plan, bar.advance)})

        self.reading.each_side(sample)
        texts: list[Any] = [read_json(self.work.folder / f"resume/cause-{side}.json")["texts"] for side in SIDES]
        for entry, cause in zip(listed, causes_of(plan, texts[0], texts[1]), strict=True):
            entry["cause"] = cause.to_json() if cause else None

    @cached_property
    def codes(self) -> sparse.csr_matrix:
        """(N, F) the features at all pairs, kept for a run that is interrupted later."""
        assert self.dictionary is not None
        assert self.crosscoder is not None
        if not self.work.has(_CODES):
            config = self.dictionary.config
            assert config.layer_a is not None
            assert config.layer_b is not None
            layer = {"a": config.layer_a, "b": config.layer_b}
            _ = self.reading.pairs  # before the threads that read them
            rows = self.reading.each_side(lambda side: self.reading.rows(side, layer[side]))
            limits = largest_norms(self.crosscoder, config)
            codes = activations(self.dictionary, rows, limits, device=self.device)
            shape = np.array(codes.shape)
            arrays = {"data": codes.data, "indices": codes.indices, "indptr": codes.indptr, "shape": shape}
            self.work.write_bytes(_CODES, save(arrays))
        arrays = load_file(self.work.folder / _CODES)
        return sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"]))

    def description(
        self, outcome: Outcome, said: Said, compared: Counter[str], entries: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """contrast.json."""
        settings = self.settings
        return {
            "format": FORMAT,
            "continuations": self.source.ref,
            "crosscoder": self.crosscoder.ref if self.crosscoder else None,
            "features": self.features.ref if self.features else None,
            "models": {side: self.reading.refs[side].name for side in SIDES},
            "places": len(self.continuations.places),
            "documents": len(self.continuations.documents),
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
