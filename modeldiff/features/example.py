"""Reading the examples of a features artifact: text with the places marked at which the feature fires."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h5py

from modeldiff.errors import DamagedError
from modeldiff.features.context import COLUMNS, RAGGED
from modeldiff.features.ragged import Column, Ragged
from modeldiff.features.surroundings import FIXED
from modeldiff.features.words import visible
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact


@dataclass(frozen=True)
class Piece:
    """A stretch of text and the feature's activation at its end; 0 where it does not fire or no pair ends."""

    text: str
    activation: float


@dataclass(frozen=True)
class Example:
    """One place at which a feature fires. All texts are on one line (see `visible`); they are data, never markup.

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
        h5py.File(self._path, "r").visititems(
            lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None
        )
        return found

    def read(self, feature: int, limit: int | None = None) -> tuple[list[Example], list[str]]:
        """(at most `limit` examples of a feature, strongest first; the words of all its examples).

        Raises:
            DamagedError: the file is damaged.
        """
        try:
            start, stop = (int(offset) for offset in self._datasets["offsets"][feature : feature + 2])
            fixed = {name: self._datasets[name][start:stop].tolist() for name in ("row", "activation")}
            if not self._has_texts:
                return [Example(*pair) for pair in zip(*fixed.values(), strict=True)][:limit], []
            fixed |= {name: self._datasets[name][start:stop].tolist() for name in FIXED}
            ragged = {name: self._ragged(name, start, stop) for name in RAGGED}
        except (OSError, KeyError, ValueError) as error:
            raise DamagedError(f"{self._path}: cannot be read ({error}); {self._artifact.mend}") from None
        places = [
            (
                {name: values[i] for name, values in fixed.items()},
                {name: one.row(i) for name, one in ragged.items()},
            )
            for i in range(stop - start)
        ]
        return [self._example(*place) for place in places[:limit]], [_word(*place) for place in places]

    def _ragged(self, name: str, start: int, stop: int) -> Ragged:
        offsets = self._datasets[f"{name}/offsets"][start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Ragged(offsets - first, {c: self._datasets[f"{name}/{c}"][first:last] for c in COLUMNS[name]})

    def _example(self, fixed: dict[str, Any], ragged: dict[str, dict[str, Column]]) -> Example:
        text = _text(ragged)
        words, centre = ragged["words"], fixed["centre"]
        start, end = int(words["start"][centre]), int(words["end"][centre])
        pieces, position = _pieces(text, words, centre)
        return Example(
            row=fixed["row"],
            activation=fixed["activation"],
            source=self._sources[fixed["source"]],
            document=fixed["document"],
            before=visible(text[:start]),
            word=visible(text[start:end]),
            after=visible(text[end:]),
            pieces=pieces,
            centre=position,
            tokens={side: _spans(text, ragged[f"tokens_{side}"]) for side in SIDES},
            tokens_differ=fixed["tokens_differ"],
        )


def _text(ragged: dict[str, dict[str, Column]]) -> str:
    return str(ragged["text"]["bytes"].tobytes().decode("utf-8", "surrogatepass"))


def _word(fixed: dict[str, Any], ragged: dict[str, dict[str, Column]]) -> str:
    words, centre = ragged["words"], fixed["centre"]
    return visible(_text(ragged)[int(words["start"][centre]) : int(words["end"][centre])])


def _spans(text: str, spans: dict[str, Column]) -> list[Piece]:
    places = zip(spans["start"].tolist(), spans["end"].tolist(), spans["activation"].tolist(), strict=True)
    return [Piece(visible(text[start:end]), activation) for start, end, activation in places]


def _pieces(text: str, words: dict[str, Column], centre: int) -> tuple[list[Piece], int]:
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
