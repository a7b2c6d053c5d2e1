"""What a contrast reads of continuations, whatever the crosscoder: the words said, the words before the places, and the
models' residual streams there. A caller that contrasts several crosscoders reads it once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import torch

from modeldiff.console import progress
from modeldiff.contrast import contexts as make
from modeldiff.contrast.contexts import Contexts
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.features import PairsBefore, pairs_before, read_rows
from modeldiff.contrast.words import Said, said_words
from modeldiff.errors import InputError
from modeldiff.lm.geometry import read_geometry
from modeldiff.lm.load import load_model, load_tokenizer, model_identity
from modeldiff.lm.model import LanguageModel
from modeldiff.sides import SIDES
from modeldiff.texts.tokenize import Reader
from modeldiff.threads import by_side
from modeldiff.workspace import Artifact, Workspace

Made = TypeVar("Made")
# A word of the vocabulary is said in so many continuations of both models together.
LEAST_SAID = 20


class Reading:
    """Everything is read when it is first asked for, and kept.

    Args:
        source: a `continuations` artifact.
    """

    def __init__(
        self,
        source: Artifact,
        workspace: Workspace,
        *,
        device: torch.device,
        dtype: torch.dtype,
        trust_remote_code: bool,
    ) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.continuations = Continuations(source)
        self.refs = self.continuations.refs(trust_remote_code)
        self._workspace = workspace
        self._models: dict[str, LanguageModel] = {}
        self._words_before: dict[int, Contexts] = {}
        self._rows: dict[tuple[str, int], torch.Tensor] = {}

    @cached_property
    def said(self) -> Said:
        """The words of both models' continuations."""
        places = self.continuations.places
        return said_words(
            {side: [place.said[side] for place in places] for side in SIDES},
            [place.drawn == "given" for place in places],
            least=LEAST_SAID,
        )

    def words_before(self, least: int) -> Contexts:
        """A context for each word that stands before so many places."""
        if least not in self._words_before:
            before = [self.continuations.before(i) for i in range(len(self.continuations.places))]
            self._words_before[least] = make.words(before, least=least)
        return self._words_before[least]

    @cached_property
    def readers(self) -> dict[str, Reader]:
        return {side: Reader(load_tokenizer(self.refs[side]), True) for side in SIDES}

    @cached_property
    def pairs(self) -> PairsBefore:
        context = {side: read_geometry(self.refs[side]).max_positions or 1 << 30 for side in SIDES}
        return pairs_before(self.continuations, self.readers, context)

    def rows(self, side: str, layer: int) -> torch.Tensor:
        """(N, D) a model's residual stream after `layer` at all pairs, in its dtype, on the CPU."""
        if (side, layer) not in self._rows:
            pairs, lm = self.pairs, self.model(side)
            with progress(f"features by {side.upper()}", len(self.continuations.documents), "documents") as bar:
                self._rows[side, layer] = read_rows(lm, layer, side, pairs, bar.advance)
        return self._rows[side, layer]

    def each_side(self, make: Callable[[str], Made]) -> dict[str, Made]:
        """make("a") and make("b"): both models at the same time on a CPU, one after the other elsewhere."""
        if self.device.type != "cpu":
            return {side: make(side) for side in SIDES}
        for side in SIDES:
            self.model(side)
        return by_side(make)

    def model(self, side: str) -> LanguageModel:
        """A model, which must be the one that continued the texts. On a CPU both stay in memory, elsewhere one.

        Raises:
            InputError: it has changed since.
        """
        if side in self._models:
            return self._models[side]
        identity = model_identity(self.refs[side], self._workspace.digest_of)
        made_with = self.source.manifest.inputs[f"model_{side}"]
        if made_with.digest not in identity.values():
            raise InputError(
                f"model {made_with.label} has changed since {self.source.ref} was made: run the continuations again"
            )
        if self.device.type != "cpu":
            self._models.clear()
        self._models[side] = load_model(self.refs[side], self.device, self.dtype)
        return self._models[side]
