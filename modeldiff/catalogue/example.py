"""Reading the examples of a features artifact: text for people, with the places marked at which the feature fires.

Layout (normative; F features, E examples of all together, those of a feature strongest first; what has a ? is absent
when activations have no texts):
    examples.h5
        offsets (F + 1,) int64              the examples of feature i are those from offsets[i] to offsets[i + 1]
        row (E,) int64                      row in the whole store of activations
        activation (E,) float32             the feature's, normalised units
        document? (E,) int64                running number of the document in the harvest
        source? (E,) int32                  index into `sources` of features.json
        centre? (E,) int32                  which of the words shown ends at the example
        tokens_differ? (E,) bool            whether the two models' tokens there begin or end at other characters
        text/offsets?, words/offsets? (E + 1,) int64    what is shown of example i are the bytes, and the words, from
                                            offsets[i] to offsets[i + 1]; a word is what ends at a pair
        text/bytes? (C,) uint8              UTF-8 of the text shown
        words/start?, words/end? (V,) int32    characters of the text shown
        words/activation? (V,) float32      the feature's at the end of the word; equal to `activation` but for rounding
        tokens_a/offsets?, tokens_b/offsets? (E + 1,) int64    likewise the models' tokens inside of the text shown
        tokens_a/start?, tokens_a/end? (Ta,) int32
        tokens_a/activation? (Ta,) float32    the feature's at the end of the token; 0 where no pair ends
        tokens_b/start?, tokens_b/end? (Tb,) int32
        tokens_b/activation? (Tb,) float32
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h5py
import numpy as np

from modeldiff.catalogue.stored import Arrays
from modeldiff.console import visible
from modeldiff.errors import DamagedError
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact
from modeldiff.workspace.hdf5 import open_hdf5

_Types = dict[str, type[np.generic]]

FIXED: _Types = {"document": np.int64, "source": np.int32, "centre": np.int32, "tokens_differ": np.bool_}
"""Arrays with one value for each example."""
_SPANS: _Types = {"start": np.int32, "end": np.int32, "activation": np.float32}
RAGGED: dict[str, _Types] = {"text": {"bytes": np.uint8}, "words": _SPANS, "tokens_a": _SPANS, "tokens_b": _SPANS}
"""Lists of each example, one after the other, and their fields."""


@dataclass(frozen=True)
class Piece:
    """Some text and the feature's activation at its end; 0 where it does not fire or no pair ends."""

    text: str
    activation: float


@dataclass(frozen=True)
class Example:
    """One place at which a feature fires. All texts are on one line (see `visible`).

    Without texts only `row` and `activation` are known.
    """

    row: int
    """Row of the activations."""
    activation: float
    source: str | None = None
    """Label of the text source."""
    document: int | None = None
    """Running number of the document in the harvest."""
    before: str | None = None
    """Text of the window before the word."""
    word: str | None = None
    """The word that ends at the example."""
    after: str | None = None
    pieces: list[Piece] | None = None
    """before + word + after, cut at every aligned place, each piece with its activation."""
    centre: int | None = None
    """Index in `pieces` of the word."""
    tokens: dict[str, list[Piece]] | None = None
    """By side, "a" and "b": the model's own tokens inside the window."""
    tokens_differ: bool | None = None
    """Whether the two models' tokens at the example begin or end at other characters, white space aside."""


class ExampleReader:
    """examples.h5 of a features artifact; the file stays open as long as the reader is in use."""

    def __init__(self, artifact: Artifact, name: str, sources: list[str], has_texts: bool) -> None:
        self._artifact = artifact
        self._sources = sources
        self._has_texts = has_texts
        self._path = artifact.file(name)

    @cached_property
    def _datasets(self) -> dict[str, h5py.Dataset]:
        found: dict[str, h5py.Dataset] = {}
        open_hdf5(self._path).visititems(
            lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None
        )
        return found

    def read(self, feature: int, limit: int | None = None) -> tuple[list[Example], list[str]]:
        """(at most `limit` examples of a feature, strongest first; the words of all its examples). Raises DamagedError:
        the file is damaged."""
        try:
            stored = self._stored(feature)
        except (OSError, KeyError, ValueError) as error:
            raise DamagedError(f"{self._path}: cannot be read ({error}); {self._artifact.mend}") from None
        if not self._has_texts:
            return [Example(**one) for one in stored[:limit]], []
        examples, words = [], []
        for number, one in enumerate(stored):
            text = one["text"]["bytes"].tobytes().decode("utf-8", "surrogatepass")
            begin, end = (int(one["words"][bound][one["centre"]]) for bound in ("start", "end"))
            words.append(visible(text[begin:end]))
            if limit is None or number < limit:
                examples.append(self._example(one, text, begin, end))
        return examples, words

    def _stored(self, feature: int) -> list[dict[str, Any]]:
        """The values and lists of each example of a feature."""
        start, stop = (int(offset) for offset in self._datasets["offsets"][feature : feature + 2])
        names = ("row", "activation", *(FIXED if self._has_texts else ()))
        columns = {name: self._datasets[name][start:stop].tolist() for name in names}
        if self._has_texts:
            columns |= {name: self._lists(name, start, stop) for name in RAGGED}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _example(self, stored: dict[str, Any], text: str, begin: int, end: int) -> Example:
        """From its values and lists, its text, and the characters of its word."""
        pieces, centre = _pieces(text, stored["words"], stored["centre"])
        return Example(
            row=stored["row"],
            activation=stored["activation"],
            source=self._sources[stored["source"]],
            document=stored["document"],
            before=visible(text[:begin]),
            word=visible(text[begin:end]),
            after=visible(text[end:]),
            pieces=pieces,
            centre=centre,
            tokens={side: _spans(text, stored[f"tokens_{side}"]) for side in SIDES},
            tokens_differ=stored["tokens_differ"],
        )

    def _lists(self, name: str, start: int, stop: int) -> list[Arrays]:
        """The fields of the lists `start` to `stop`."""
        offsets = self._datasets[f"{name}/offsets"][start : stop + 1]
        fields = {field: self._datasets[f"{name}/{field}"][offsets[0] : offsets[-1]] for field in RAGGED[name]}
        borders = itertools.pairwise((offsets - offsets[0]).tolist())
        return [{field: values[low:high] for field, values in fields.items()} for low, high in borders]


def _spans(text: str, spans: Arrays) -> list[Piece]:
    places = zip(spans["start"].tolist(), spans["end"].tolist(), spans["activation"].tolist(), strict=True)
    return [Piece(visible(text[start:end]), activation) for start, end, activation in places]


def _pieces(text: str, words: Arrays, centre: int) -> tuple[list[Piece], int]:
    """The whole text in pieces, and which of them is the word in the middle."""
    pieces: list[Piece] = []
    behind, position = 0, 0
    for index, (start, word) in enumerate(zip(words["start"].tolist(), _spans(text, words), strict=True)):
        if start > behind:
            pieces.append(Piece(visible(text[behind:start]), 0.0))
        if index == centre:
            position = len(pieces)
        pieces.append(word)
        behind = int(words["end"][index])
    if behind < len(text):
        pieces.append(Piece(visible(text[behind:]), 0.0))
    return pieces, position
