"""Short stretches of the sample's texts to detect features on, and which of them a feature is tried on.

Legend: N pairs of the sample, E excerpts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modeldiff.features.measures.explain.sample import Sample

LENGTH = 32
"""Pairs of an excerpt at most; a longer text is cut into equal parts."""
MIN_TEXTS = 3
"""With fewer texts on which it is active, a feature is not tried."""
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """Held-out excerpts (their numbers) to try one feature on, each from a document of its own within its kind."""

    active: Ints
    """On which the feature is most active."""
    inactive: Ints
    """Drawn from those on which it is not active."""
    activation: dict[int, float]
    """Highest activation in each of them."""


@dataclass(frozen=True)
class Excerpts:
    """All excerpts of a sample, in its order."""

    sample: Sample
    start_E: Ints
    """First pair in the sample."""
    stop_E: Ints

    @classmethod
    def of(cls, sample: Sample) -> Excerpts:
        n = len(sample.window_N)
        borders = [0, *(np.flatnonzero(np.diff(sample.window_N)) + 1).tolist(), n]
        starts: list[int] = []
        for start, stop in itertools.pairwise(borders):
            parts = math.ceil((stop - start) / LENGTH)
            starts += [start + (stop - start) * part // parts for part in range(parts)]
        return cls(sample, np.array(starts), np.array([*starts[1:], n]))

    def __len__(self) -> int:
        return len(self.start_E)

    @cached_property
    def excerpt_N(self) -> Ints:
        return np.repeat(np.arange(len(self)), self.stop_E - self.start_E)

    @cached_property
    def document_E(self) -> Ints:
        return self.sample.document_W[self.sample.window_N[self.start_E]]

    @cached_property
    def known_E(self) -> NDArray[np.bool_]:
        """Something is known about whether features fire there: not all of it is outliers."""
        return np.bincount(self.excerpt_N, self.sample.kept_N, minlength=len(self)) > 0

    @cached_property
    def second_E(self) -> NDArray[np.bool_]:
        """Of the held-out half."""
        return self.sample.second_W[self.sample.window_N[self.start_E]]

    @cached_property
    def fresh_E(self) -> NDArray[np.bool_]:
        """Of the held-out half, in a text that does not stand in the other half too."""
        sample = self.sample
        repeated_W = np.isin(sample.text_W, sample.text_W[~sample.second_W])
        return self.second_E & ~repeated_W[sample.window_N[self.start_E]]

    def activation(self, column: int) -> NDArray[np.float32]:
        """(E,): highest activation of a feature in each."""
        codes = self.sample.codes_NG
        part = slice(codes.indptr[column], codes.indptr[column + 1])
        highest_E = np.zeros(len(self), np.float32)
        np.maximum.at(highest_E, self.excerpt_N[codes.indices[part]], codes.data[part])
        return highest_E

    def choose(self, column: int, count: int, seen: Ints, rng: np.random.Generator) -> Chosen | str:
        """Held-out excerpts for a feature: `count` of each kind, fewer where it is active in fewer documents; or why
        there are none.

        Args:
            seen: numbers of documents that must not be among them, nor others with the same text.
        """
        activation_E = self.activation(column)
        usable_E = self.fresh_E & self.known_E & ~self._holds(seen)
        active = np.flatnonzero(usable_E & (activation_E > 0))
        active = active[np.lexsort((active, -activation_E[active]))]
        _, first = np.unique(self.document_E[active], return_index=True)
        active = active[np.sort(first)]
        inactive = self._one_per_document(np.flatnonzero(usable_E & (activation_E == 0)), rng)
        n = min(count, len(active), len(inactive))
        if n < MIN_TEXTS:
            return f"it fires in {len(active)} held-out documents, and {len(inactive)} have a text without it: too few"
        active, inactive = active[:n], np.sort(rng.permutation(inactive)[:n])
        both = sorted([*active.tolist(), *inactive.tolist()])
        return Chosen(active, inactive, {excerpt: float(activation_E[excerpt]) for excerpt in both})

    def span(self, excerpt: int) -> tuple[int, int]:
        """First and last row of the store."""
        row_N = self.sample.row_N
        return int(row_N[self.start_E[excerpt]]), int(row_N[self.stop_E[excerpt] - 1])

    def _holds(self, documents: Ints) -> NDArray[np.bool_]:
        """(E,): in one of these documents, or in a text that one of them has too."""
        sample = self.sample
        in_them_W = np.isin(sample.document_W, documents)
        repeats_W = in_them_W | np.isin(sample.text_W, sample.text_W[in_them_W])
        return repeats_W[sample.window_N[self.start_E]]

    def _one_per_document(self, excerpts: Ints, rng: np.random.Generator) -> Ints:
        mixed = rng.permutation(excerpts)
        _, first = np.unique(self.document_E[mixed], return_index=True)
        return np.sort(mixed[first])
