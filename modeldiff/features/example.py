"""Reading the examples of a features artifact: text with the places marked at which the feature fires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py

from modeldiff.errors import DamagedError
from modeldiff.features.context import RAGGED
from modeldiff.features.ragged import Column, Ragged
from modeldiff.features.words import visible
from modeldiff.workspace import Artifact
from modeldiff.workspace.plan import SIDES


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


class ExampleReader:
    """examples.h5 of a features artifact.

    `read` raises DamagedError when the file is damaged.
    """

    def __init__(self, artifact: Artifact, name: str, sources: list[str], has_texts: bool) -> None:
        self._artifact = artifact
        self._name = name
        self._sources = sources
        self._has_texts = has_texts
        self._path = artifact.file(name)

    def read(self, feature: int) -> list[Example]:
        """The examples of a feature, strongest first."""
        try:
            with h5py.File(self._path, "r") as file:
                start, stop = (int(offset) for offset in file["offsets"][feature : feature + 2])
                columns = {name: file[name][start:stop].tolist() for name in ("row", "activation")}
                if not self._has_texts:
                    return [Example(*pair) for pair in zip(*columns.values(), strict=True)]
                fixed = {name: file[name][start:stop].tolist() for name in ("source", "document", "centre")}
                ragged = {name: _read_ragged(file[name], start, stop) for name in RAGGED}
        except (OSError, KeyError, ValueError) as error:
            raise DamagedError(f"{self._path}: cannot be read ({error}); {self._artifact.mend}") from None
        return [
            self._example(
                {name: values[i] for name, values in (columns | fixed).items()},
                {name: one.row(i) for name, one in ragged.items()},
            )
            for i in range(stop - start)
        ]

    def _example(self, fixed: dict[str, Any], ragged: dict[str, dict[str, Column]]) -> Example:
        text = ragged["text"]["bytes"].tobytes().decode("utf-8", "surrogatepass")
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
        )


def _read_ragged(group: h5py.Group, start: int, stop: int) -> Ragged:
    offsets = group["offsets"][start : stop + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    return Ragged(offsets - first, {name: group[name][first:last] for name in group if name != "offsets"})


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
