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

import io
import math
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from scipy import sparse

from modeldiff.console import progress, say
from modeldiff.contrast import contexts as make
from modeldiff.contrast.cause import CauseOf, alike, cause_places, causes_of, generate_variants, shown
from modeldiff.contrast.contexts import Contexts, PairsBefore, activations, feature_contexts, pairs_before, read_rows
from modeldiff.contrast.continuations import Continuations, Models
from modeldiff.contrast.discovery import PERMUTATIONS, WORLDS, Outcome, contrast
from modeldiff.contrast.entries import entry_json, represented
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.contrast.stored import FORMAT, NAME, PLACES
from modeldiff.contrast.words import LEAST_SAID, said_words
from modeldiff.crosscoder import CrosscoderConfig, load
from modeldiff.crosscoder.settings import outlier_factor_of
from modeldiff.errors import InputError
from modeldiff.features.table import FeatureTable
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.load import load_tokenizer, model_identity, read_geometry
from modeldiff.sides import SIDES
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json

SCHEMA = 4
_CODES = "resume/codes.npz"
# In each half so many documents that they can be told from one another.
_LEAST_DOCUMENTS = 4


def run(settings: ContrastSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Compare what both models say where contexts hold with what they say elsewhere.

    Raises:
        InputError: there are no continuations, or of too few documents, or the crosscoder is of other models, or a
            model has changed since it continued the texts.
    """
    inputs = {"continuations": workspace.find("continuations", settings.continuations)}
    if "feature" in settings.contexts:
        crosscoder = crosscoder_for(workspace, inputs["continuations"], settings.crosscoder)
        if crosscoder:
            inputs["crosscoder"] = crosscoder
            features = features_of(workspace, crosscoder)
            if features:
                inputs["features"] = features
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        return _Build(settings, workspace, work, inputs, device, dtype).run()

    order = Order("contrast", settings, {kind: one.as_input() for kind, one in inputs.items()}, SCHEMA)
    return produce(workspace, order, build, name=name, force=force)


def crosscoder_for(workspace: Workspace, continuations: Artifact, ref: str | None) -> Artifact | None:
    """The crosscoder called `ref`, or the latest one that was trained on the models of the continuations; None where
    there is none, or `ref` is "none". Raises InputError: the one named was trained on other models."""
    if ref == "none":
        return None
    models = [continuations.manifest.inputs[f"model_{side}"].digest for side in SIDES]
    harvests = set()
    for one in workspace.artifacts("activations"):
        harvested = [one.manifest.inputs.get(f"model_{side}") for side in SIDES]
        if [model and model.digest for model in harvested] == models:
            harvests.add(one.manifest.digest)

    def fits(crosscoder: Artifact) -> bool:
        return crosscoder.manifest.inputs["activations"].digest in harvests

    if ref is not None:
        named = workspace.find("crosscoder", ref)
        if not fits(named):
            raise InputError(f"{named.ref} was trained on other models than those of {continuations.ref}")
        return named
    latest = next(filter(fits, reversed(workspace.artifacts("crosscoder"))), None)
    if latest:
        say(f"features of {latest.ref}")
    return latest


def features_of(workspace: Workspace, crosscoder: Artifact) -> Artifact | None:
    """The latest features artifact of a crosscoder."""
    made = reversed(workspace.artifacts("features"))
    return next((one for one in made if one.manifest.inputs["crosscoder"].digest == crosscoder.manifest.digest), None)


def largest_norms(crosscoder: Artifact, config: CrosscoderConfig) -> dict[str, float]:
    """By side, the largest norm of a pair that the training of a crosscoder would have kept."""
    factor = outlier_factor_of(crosscoder)
    return {side: config.largest_norm(side, factor) if factor else math.inf for side in SIDES}


def places_of(outcome: Outcome, ranks: list[int]) -> bytes:
    found = [outcome.contexts.on_CP[outcome.entries[rank - 1].candidate.context].indices for rank in ranks]
    indices = np.concatenate([np.zeros(0, np.int32), *(np.sort(one) for one in found)]).astype(np.int32)
    return save({"indices": indices, "offsets": np.cumsum([0, *map(len, found)])})


class _Build:
    """One run of the stage. What takes long is made when it is first asked for."""

    def __init__(
        self,
        settings: ContrastSettings,
        workspace: Workspace,
        work: Work,
        inputs: dict[str, Artifact],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.settings, self.workspace, self.work, self.inputs = settings, workspace, work, inputs
        self.device, self.dtype = device, dtype
        self.continuations = Continuations(inputs["continuations"])
        self.refs = self.continuations.refs(settings.trust_remote_code)
        self.dictionary = load(inputs["crosscoder"]) if "crosscoder" in inputs else None
        self.measured = FeatureTable(inputs["features"]) if "features" in inputs else None

    def run(self) -> dict[str, Any]:
        settings, continuations, source = self.settings, self.continuations, self.inputs["continuations"]
        places = continuations.places
        document_P = np.array([place.document for place in places])
        documents = len(set(document_P.tolist()))
        if documents < _LEAST_DOCUMENTS:
            raise InputError(
                f"{source.ref} is of {documents} documents: at least {_LEAST_DOCUMENTS} are needed, two that "
                "discover and two that verify; give more --texts"
            )
        said = said_words(
            {side: [place.said[side] for place in places] for side in SIDES},
            [place.drawn == "given" for place in places],
            least=LEAST_SAID,
        )
        words_before = make.words([continuations.before(i) for i in range(len(places))], least=2 * settings.least)
        contexts = self.contexts(words_before)
        compared = Counter(one.kind for one in contexts.which)
        shown = ", ".join(f"{count:,} of kind {kind}" for kind, count in compared.items())
        say(f"{len(said.names):,} words; contexts: {shown}")
        with progress("contrast", PERMUTATIONS, "permutations") as bar:
            outcome = contrast(contexts, said, document_P, settings, note=bar.advance)
        entries = []
        for rank, one in enumerate(outcome.entries, 1):
            entry = entry_json(one, rank, outcome, continuations, said, words_before, settings.seed)
            entry["represented"] = entry["cause"] = None
            if self.measured and entry["feature"] is not None:
                entry["represented"] = represented(self.measured.row(entry["feature"], examples=0))
            entries.append(entry)
        self.add_causes(outcome, entries)
        differences = [one for one in entries if one["verified"]][: settings.top]
        not_verified = [one for one in entries if not one["verified"]]
        refs = {kind: self.inputs[kind].ref if kind in self.inputs else None for kind in ("crosscoder", "features")}
        description = {
            "format": FORMAT,
            "continuations": source.ref,
            **refs,
            "models": {side: self.refs[side].name for side in SIDES},
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
            "differences": differences,
            "not_verified": not_verified,
        }
        self.work.write_json(NAME, description)
        self.work.write_bytes(PLACES, places_of(outcome, [one["rank"] for one in differences + not_verified]))
        return {
            "found": outcome.found,
            "expected_by_chance": outcome.chance,
            "candidates": len(entries),
            "contexts": len(outcome.contexts),
        }

    def contexts(self, words_before: Contexts) -> Contexts:
        places = self.continuations.places
        labels = [self.continuations.documents[place.document].source for place in places]
        made = {
            "everywhere": lambda: make.everywhere(len(places)),
            "source": lambda: make.sources(labels),
            "word": lambda: words_before,
            "feature": self.compared_features,
        }
        return make.joined([make_them() for kind, make_them in made.items() if kind in self.settings.contexts])

    def compared_features(self) -> Contexts:
        if self.dictionary is None:
            say("no crosscoder of these models: words, sources and everywhere alone (`modeldiff train` makes one)")
            return make.none(len(self.continuations.places))
        found = self.all_features
        if self.measured is None or self.settings.tokens_differ:
            return found
        differ_F = self.measured.mostly_differ_F
        keep_C = np.array([not differ_F[int(one.name)] for one in found.which], bool)
        say(f"{(~keep_C).sum()} features left out: the models mostly read different tokens there (--tokens-differ)")
        return found.those(keep_C)

    @cached_property
    def all_features(self) -> Contexts:
        """A context for every feature that is active at all."""
        return feature_contexts(self.codes, self.pairs)

    @cached_property
    def codes(self) -> sparse.csr_matrix:
        """(N, F) the features at all pairs, kept for a run that is interrupted later."""
        assert self.dictionary is not None
        if not self.work.has(_CODES):
            pairs, models, layer = self.pairs, self.models, self.layer

            def read(side: str) -> torch.Tensor:
                with progress(f"features by {side.upper()}", len(pairs.ids), "documents") as bar:
                    return read_rows(models.load(side), layer[side], side, pairs, bar.advance)

            limits = largest_norms(self.inputs["crosscoder"], self.dictionary.config)
            found = activations(self.dictionary, models.each_side(read), limits, device=self.device)
            packed = io.BytesIO()
            sparse.save_npz(packed, found, compressed=False)
            self.work.write_bytes(_CODES, packed.getvalue())
        return sparse.load_npz(self.work.folder / _CODES)

    @cached_property
    def layer(self) -> dict[str, int]:
        assert self.dictionary is not None
        return {side: int(getattr(self.dictionary.config, f"layer_{side}")) for side in SIDES}

    @cached_property
    def pairs(self) -> PairsBefore:
        context = {side: read_geometry(self.refs[side]).max_positions or 1 << 30 for side in SIDES}
        return pairs_before(self.continuations, self.readers, context)

    @cached_property
    def readers(self) -> dict[str, Reader]:
        return {side: Reader(load_tokenizer(self.refs[side])) for side in SIDES}

    @cached_property
    def models(self) -> Models:
        """The models, which must be those that continued the texts."""
        source = self.inputs["continuations"]
        for side in SIDES:
            made_with = source.manifest.inputs[f"model_{side}"]
            if made_with.digest not in model_identity(self.refs[side], self.workspace.digest_of).values():
                raise InputError(
                    f"model {made_with.label} has changed since {source.ref} was made: run the continuations again"
                )
        return Models(self.refs, self.device, self.dtype)

    def add_causes(self, outcome: Outcome, entries: list[dict[str, Any]]) -> None:
        """Sample again for the listed entries that have a feature."""
        settings = self.settings
        listed = [one for one in entries if one["verified"] and one["feature"] is not None][: settings.top]
        if not settings.cause or not listed or self.dictionary is None:
            return
        row_of = {int(one.name): c for c, one in enumerate(self.all_features.which)}
        asked = []
        for entry in listed:
            context, owner = outcome.entries[entry["rank"] - 1].candidate.context, entry["side"].lower()
            on_P = outcome.contexts.on_CP[context].toarray()[0] > 0
            active_P = self.all_features.on_CP[row_of[entry["feature"]]].toarray()[0] > 0
            features = alike(self.all_features, entry["feature"])
            asked.append(
                CauseOf(
                    owner,
                    [row["word"] for row in entry[f"{owner}_says"]],
                    [g for g in features if self.dictionary.partition_of(g) in ("shared", entry["side"])],
                    on_P & active_P & ~outcome.first_P,
                )
            )
        places = cause_places(
            asked, self.continuations, self.pairs, self.readers, places=settings.cause_places, seed=settings.seed
        )
        say(f"cause: {len(places):,} places of {len(listed)} entries again, with features removed")
        shown_of = [shown(self.dictionary, one.features, one.owner) if one.features else None for one in asked]

        def sample(side: str) -> list[list[str]]:
            name = f"resume/cause-{side}.json"
            if not self.work.has(name):
                with progress(f"cause in {side.upper()}", len(places), "places") as bar:
                    texts = generate_variants(
                        self.models.load(side),
                        side,
                        places,
                        [shown_of[one.entry] if asked[one.entry].owner == side else None for one in places],
                        layer=self.layer[side],
                        tokens=int(self.inputs["continuations"].settings["tokens"]),
                        seed=settings.seed,
                        note=bar.advance,
                    )
                self.work.write_json(name, {"texts": texts})
            found: list[list[str]] = read_json(self.work.folder / name)["texts"]
            return found

        texts = self.models.each_side(sample)
        for entry, cause in zip(listed, causes_of(asked, self.continuations, places, texts), strict=True):
            entry["cause"] = cause
