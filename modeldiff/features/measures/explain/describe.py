"""A feature described from the texts alone: its words, the words before it, its sources.

Everything is counted on one half of the documents, over all pairs of the sample there, not only over top examples.

Legend: N kept pairs of the describing half, W windows, C firings of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.features.measures.explain.lift import Lift, Places, before, characteristic, shifts
from modeldiff.features.measures.explain.sample import Sample
from modeldiff.records import from_json, to_json

CONTEXT = 20
"""Pairs before a firing that count as its context."""
MIN_FIRINGS = 10
"""A feature that fires less often in the describing half is not described."""
_NAMED = 3


@dataclass(frozen=True)
class Description:
    """What the texts say about a feature; lists are empty where nothing exceeds chance."""

    firings: int
    """Of the feature in the describing half."""
    density: float
    """Share of the pairs there."""
    missing: str | None
    """Why there is no description."""
    words: list[Lift]
    """On which it fires."""
    context: list[Lift]
    """Among the `CONTEXT` pairs before a firing, in the same text."""
    sources: list[Lift]

    @property
    def text(self) -> str:
        """In one line, for people."""
        if self.missing:
            return self.missing
        return "; ".join(self.lines(_NAMED))

    def lines(self, most: int, *, chance: bool = False) -> list[str]:
        """What is characteristic, a line for each kind of evidence, the most telling first; `most` names of each, with
        what chance gives in brackets if asked for."""
        kinds = [("on", self.words), ("after", self.context), ("in", self.sources)]
        found = sorted((kind for kind in kinds if kind[1]), key=lambda kind: -kind[1][0].nats)
        if not found:
            return ["no word, context or source beyond chance"]
        return [
            f"{preposition} " + ", ".join(_named(one, chance=chance) for one in lifts[:most])
            for preposition, lifts in found
        ]

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, **to_json(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> Description:
        """The inverse of `to_json`."""
        return from_json(cls, {name: value for name, value in data.items() if name != "text"}, where)


def shown(name: str) -> str:
    """A word as it is shown: quoted where it would not be seen or would run into what is around it."""
    return name if name[:1].isalnum() and " " not in name else f"'{name}'"


def times(lift: float) -> str:
    """A lift for people: `41x`."""
    return f"{lift:.0f}x" if lift >= 10 else f"{lift:.1f}x"


def _named(one: Lift, *, chance: bool) -> str:
    return f"{shown(one.name)} {times(one.lift)}" + (f" ({one.chance:.1f})" if chance else "")


class Describer:
    """Describes features of a sample from the half of the documents that is not held out.

    Args:
        sources: labels.
        seed: of the shifts.
    """

    def __init__(self, sample: Sample, sources: Sequence[str], seed: int) -> None:
        self._sample = sample
        here = sample.kept_N & ~sample.second_W[sample.window_N]
        self._rows = np.flatnonzero(here)
        self._number = np.cumsum(here) - 1
        self._here = here
        window_N = sample.window_N[self._rows]
        context = before(sample.word_N, sample.window_N, CONTEXT)[self._rows]
        self._places = {
            "words": Places(sample.word_N[self._rows, None], sample.words),
            "context": Places(context, sample.words),
            "sources": Places(sample.source_W[window_N][:, None], sources),
        }
        self._counts = {name: places.counts() for name, places in self._places.items()}
        self._shifts = shifts(len(self._rows), seed)

    @property
    def pairs(self) -> int:
        """N."""
        return len(self._rows)

    def describe(self, column: int, top: int) -> Description:
        """The feature in this column of the codes; lists of at most `top`."""
        row_C, value_C = self._firings(column)
        density = len(row_C) / max(1, self.pairs)
        if len(row_C) < MIN_FIRINGS:
            why = f"fires {len(row_C)} times in the {self.pairs:,} pairs that describe: too seldom"
            return Description(len(row_C), density, why, [], [], [])
        found = {
            name: characteristic(places, self._counts[name], row_C, value_C, self._shifts, top)
            for name, places in self._places.items()
        }
        return Description(firings=len(row_C), density=density, missing=None, **found)

    def _firings(self, column: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        codes = self._sample.codes_NG
        part = slice(codes.indptr[column], codes.indptr[column + 1])
        order = np.argsort(codes.indices[part])
        row, value = codes.indices[part][order], codes.data[part][order]
        here = self._here[row]
        return self._number[row[here]], value[here]
