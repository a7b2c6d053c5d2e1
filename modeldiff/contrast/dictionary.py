"""What a crosscoder adds to a list of differences: features as contexts, where they are represented, and causes.

Legend: P places, C contexts, N pairs, F features.
"""

from __future__ import annotations

import io
import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse

from modeldiff.catalogue.table import FeatureTable
from modeldiff.console import progress, say
from modeldiff.contrast.cause import CauseOf, CausePlace, alike, cause_places, causes_of, generate_variants, shown
from modeldiff.contrast.contexts import Contexts, PairsBefore, activations, feature_contexts, pairs_before, read_rows
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.discovery import Outcome
from modeldiff.contrast.entries import represented
from modeldiff.contrast.sampling import Models
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.crosscoder import CrosscoderConfig, load
from modeldiff.crosscoder.settings import outlier_factor_of
from modeldiff.errors import InputError
from modeldiff.lm.load import read_geometry
from modeldiff.lm.residual import Shown
from modeldiff.sides import SIDES
from modeldiff.texts.tokenize import open_reader
from modeldiff.workspace import Artifact, Work, Workspace
from modeldiff.workspace.files import read_json

_CODES = "resume/codes.npz"


def crosscoder_for(workspace: Workspace, continuations: Artifact, ref: str | None) -> Artifact | None:
    """The crosscoder called `ref`, or the latest one that was trained on the models of the continuations; None where
    there is none, or `ref` is "none". Raises InputError: the one named was trained on other models."""
    if ref == "none":
        return None
    models = _models_of(continuations)
    harvests = {one.manifest.digest for one in workspace.artifacts("activations") if _models_of(one) == models}
    asked = workspace.artifacts("crosscoder") if ref is None else [workspace.find("crosscoder", ref)]
    fitting = [one for one in asked if one.manifest.inputs["activations"].digest in harvests]
    if ref is not None and not fitting:
        raise InputError(f"{asked[0].ref} was trained on other models than those of {continuations.ref}")
    if ref is None and fitting:
        say(f"features of {fitting[-1].ref}")
    return fitting[-1] if fitting else None


def _models_of(artifact: Artifact) -> list[str | None]:
    """The digests of the models that an artifact was made with; None of one that is not known."""
    models = [artifact.manifest.inputs.get(f"model_{side}") for side in SIDES]
    return [model.digest if model else None for model in models]


def features_of(workspace: Workspace, crosscoder: Artifact) -> Artifact | None:
    """The latest features artifact of a crosscoder."""
    made = reversed(workspace.artifacts("features"))
    return next((one for one in made if one.manifest.inputs["crosscoder"].digest == crosscoder.manifest.digest), None)


def largest_norms(crosscoder: Artifact, config: CrosscoderConfig) -> dict[str, float]:
    """By side, the largest norm of a pair that the training of a crosscoder would have kept."""
    factor = outlier_factor_of(crosscoder)
    return {side: config.largest_norm(side, factor) if factor else math.inf for side in SIDES}


class Dictionary:
    """A crosscoder of two models at the places of their continuations."""

    def __init__(
        self,
        artifact: Artifact,
        features: Artifact | None,
        continuations: Continuations,
        models: Models,
        settings: ContrastSettings,
        work: Work,
    ) -> None:
        self.artifact, self.continuations, self.models = artifact, continuations, models
        self.settings, self.work = settings, work
        self.crosscoder = load(artifact)
        self.measured = FeatureTable(features) if features else None
        self.layer = {side: int(getattr(self.crosscoder.config, f"layer_{side}")) for side in SIDES}
        self.readers = {side: open_reader(models.refs[side], side) for side in SIDES}

    def compared(self) -> Contexts:
        """A context for each feature that is active at all, but for those at which the models mostly read different
        tokens, unless these are asked for."""
        if self.measured is None or self.settings.tokens_differ:
            return self.contexts
        differ_F = self.measured.mostly_differ_F
        keep_C = np.array([not differ_F[int(one.name)] for one in self.contexts.which], bool)
        say(f"{(~keep_C).sum()} features left out: the models mostly read different tokens there (--tokens-differ)")
        return self.contexts.those(keep_C)

    def explain(self, outcome: Outcome, entries: list[dict[str, Any]]) -> None:
        """Say of the entries that have a feature where it is represented, and of those listed whether it is the
        cause."""
        of_feature = [entry for entry in entries if entry["feature"] is not None]
        if self.measured:
            for entry in of_feature:
                entry["represented"] = represented(self.measured.row(entry["feature"], examples=0))
        listed = [entry for entry in of_feature if entry["verified"]][: self.settings.top]
        if not self.settings.cause or not listed:
            return
        asked = [self._cause_of(outcome, entry) for entry in listed]
        places = cause_places(asked, self.continuations, self.pairs, self.readers, self.settings)
        say(f"cause: {len(places):,} places of {len(listed)} entries again, with features removed")
        of_entry = [shown(self.crosscoder, one.features, one.owner) if one.features else None for one in asked]

        def sample(side: str) -> list[list[str]]:
            removed = [of_entry[one.entry] if asked[one.entry].owner == side else None for one in places]
            return self._sample_again(side, places, removed)

        texts = self.models.each_side(sample)
        for entry, cause in zip(listed, causes_of(asked, self.continuations, places, texts), strict=True):
            entry["cause"] = cause

    def _cause_of(self, outcome: Outcome, entry: dict[str, Any]) -> CauseOf:
        owner, feature = entry["side"].lower(), entry["feature"]
        context = outcome.entries[entry["rank"] - 1].candidate.context
        active_P = self.contexts.on([one.name for one in self.contexts.which].index(str(feature)))
        together = alike(self.contexts, feature)
        return CauseOf(
            owner,
            [row["word"] for row in entry[f"{owner}_says"]],
            [g for g in together if self.crosscoder.partition_of(g) in ("shared", entry["side"])],
            outcome.contexts.on(context) & active_P & ~outcome.first_P,
        )

    def _sample_again(self, side: str, places: list[CausePlace], removed: list[Shown | None]) -> list[list[str]]:
        """What a model says at the places (`generate_variants`)."""
        name = f"resume/cause-{side}.json"
        if not self.work.has(name):
            lm, tokens = self.models.load(side), int(self.continuations.artifact.settings["tokens"])
            values = {"layer": self.layer[side], "tokens": tokens, "seed": self.settings.seed}
            with progress(f"cause in {side.upper()}", len(places), "places") as bar:
                texts = generate_variants(lm, side, places, removed, **values, note=bar.advance)
            self.work.write_json(name, {"texts": texts})
        found: list[list[str]] = read_json(self.work.folder / name)["texts"]
        return found

    @cached_property
    def pairs(self) -> PairsBefore:
        longest = {side: read_geometry(ref).max_positions or 1 << 30 for side, ref in self.models.refs.items()}
        return pairs_before(self.continuations, self.readers, longest)

    @cached_property
    def contexts(self) -> Contexts:
        """A context for every feature that is active at all."""
        if not self.work.has(_CODES):
            packed = io.BytesIO()
            sparse.save_npz(packed, self._read_codes(self.pairs), compressed=False)
            self.work.write_bytes(_CODES, packed.getvalue())
        return feature_contexts(sparse.load_npz(self.work.folder / _CODES), self.pairs)

    def _read_codes(self, pairs: PairsBefore) -> sparse.csr_matrix:
        """(N, F) the features at all pairs."""

        def read(side: str) -> torch.Tensor:
            with progress(f"features by {side.upper()}", len(pairs.ids), "documents") as bar:
                return read_rows(self.models.load(side), self.layer[side], side, pairs, bar.advance)

        limits, rows = largest_norms(self.artifact, self.crosscoder.config), self.models.each_side(read)
        # A GPU holds one of them at a time: a model, or the crosscoder.
        self.models.drop()
        with progress("features before the places", len(pairs.document_N), "pairs") as bar:
            found = activations(self.crosscoder, rows, limits, device=self.models.device, note=bar.advance)
        self.crosscoder.to("cpu")
        return found
