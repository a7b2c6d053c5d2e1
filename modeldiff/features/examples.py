"""The pairs on which each feature fires most strongly, kept varied while the pass runs.

Rule: first the strongest pair of each document, the documents in order of that activation. Where a feature fires in
fewer documents than examples are wanted, the strongest remaining pairs follow, at most one per passage of `PASSAGE`
rows of a document. Ties go to the earlier row.

Legend: F features, E examples, n places per feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int64]

PASSAGE = 32
"""Rows of a document that give at most one example: about the length of the context that is shown."""
# Firings that wait before they are ranked: at least so many, or this share of the places that there are.
_LEAST_WAITING, _SHARE_WAITING = 1 << 16, 0.25


class TopRows:
    """For each feature the `n` buckets (documents or passages) in which it fires most strongly, and the strongest row
    of each.

    New firings wait until there are enough of them to rank: `settle` before reading the arrays.

    Attributes:
        activation (F, n) float32, 0 where empty; row (F, n) and bucket (F, n) int64, -1 where empty; strongest first.
    """

    def __init__(self, n_features: int, n: int) -> None:
        self.activation = np.zeros((n_features, n), np.float32)
        self.row = np.full((n_features, n), -1, np.int64)
        self.bucket = np.full((n_features, n), -1, np.int64)
        self._waiting: list[tuple[NDArray[Any], ...]] = []

    def update(self, feature: Ints, activation: NDArray[np.float32], row: Ints, bucket: Ints) -> bool:
        """Take firings in: one entry each in four arrays of equal length, ordered by row; later calls bring later
        rows. True: they were ranked, so that fewer have a chance from now on."""
        chance = activation > self.activation[feature, -1]
        self._waiting.append((feature[chance], activation[chance], row[chance], bucket[chance]))
        if sum(len(one[0]) for one in self._waiting) > max(_LEAST_WAITING, _SHARE_WAITING * self.row.size):
            self.settle()
        return not self._waiting

    def least(self, device: torch.device) -> torch.Tensor:
        """(F,) what a firing must exceed to have a chance."""
        return torch.from_numpy(self.activation[:, -1].copy()).to(device)

    def held(self) -> tuple[NDArray[Any], ...]:
        """What is kept: feature, activation, row and bucket, an entry each."""
        at = np.nonzero(self.row >= 0)
        return at[0], self.activation[at], self.row[at], self.bucket[at]

    def add(self, other: TopRows) -> None:
        """Take in what another one has kept of other rows, before or behind these. In neither anything waits."""
        feature, activation, row, bucket = map(np.concatenate, zip(*(self.held(), other.held()), strict=True))
        order = np.argsort(row, kind="stable")
        self.activation[:], self.row[:], self.bucket[:] = 0, -1, -1
        self.update(feature[order], activation[order], row[order], bucket[order])
        self.settle()

    def settle(self) -> None:
        """Rank the firings that wait among those that are kept."""
        if not self._waiting:
            return
        feature, activation, row, bucket = map(np.concatenate, zip(*self._waiting, strict=True))
        self._waiting = []
        touched, place = np.unique(feature, return_inverse=True)
        # What is kept comes first: it has earlier rows.
        kept = self.row[touched] >= 0
        place = np.concatenate([np.nonzero(kept)[0], place])
        activation = np.concatenate([self.activation[touched][kept], activation])
        row = np.concatenate([self.row[touched][kept], row])
        bucket = np.concatenate([self.bucket[touched][kept], bucket])

        order = _by_strength(place, activation)
        place, activation, row, bucket = place[order], activation[order], row[order], bucket[order]
        # The order is stable: the first entry of each bucket is its strongest.
        by_bucket = np.lexsort((bucket, place))
        best = np.sort(by_bucket[_first_of_run(place[by_bucket], bucket[by_bucket])])
        rank = _rank_in_run(place[best])
        best, rank = best[rank < self.row.shape[1]], rank[rank < self.row.shape[1]]
        self.activation[touched], self.row[touched], self.bucket[touched] = 0, -1, -1
        at = (touched[place[best]], rank)
        self.activation[at], self.row[at], self.bucket[at] = activation[best], row[best], bucket[best]


@dataclass(frozen=True)
class Examples:
    """The chosen examples of all features, those of one feature together, strongest first."""

    offsets: Ints
    """(F + 1,): examples of feature i are offsets[i] to offsets[i + 1]."""
    feature: Ints
    row: Ints
    """Row in the whole store."""
    activation: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row)


def passage_of(document_B: Ints, row_B: Ints) -> Ints:
    """Bucket of each row: its document and which passage it lies in."""
    return document_B * (1 << 32) + row_B // PASSAGE


def choose(by_document: TopRows, by_passage: TopRows) -> Examples:
    """The examples by the rule above; both arguments have the same shape."""
    tops = (by_document, by_passage)
    for top in tops:
        top.settle()
    n_features, n = by_document.row.shape
    held = [top.held() for top in tops]
    feature, activation, row, _ = map(np.concatenate, zip(*held, strict=True))
    later = np.repeat([0, 1], [len(one[0]) for one in held])
    distinct = np.lexsort((later, row, feature))
    distinct = distinct[_first_of_run(feature[distinct], row[distinct])]
    order = distinct[np.lexsort((row[distinct], -activation[distinct], later[distinct], feature[distinct]))]
    order = order[_rank_in_run(feature[order]) < n]
    order = order[np.lexsort((row[order], -activation[order], feature[order]))]
    counts = np.bincount(feature[order], minlength=n_features)
    return Examples(np.concatenate([[0], np.cumsum(counts)]), feature[order], row[order], activation[order])


def _first_of_run(*keys: Ints) -> NDArray[np.bool_]:
    """True where an entry differs from the one before in any of the (sorted) keys."""
    first = np.ones(len(keys[0]), bool)
    first[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return first


def _by_strength(place: Ints, activation: NDArray[np.float32]) -> Ints:
    """The order by place, then falling activation, then as they come. Places below 2^31, activations of at least 0."""
    # The bits of floats that are not negative rise as their values do.
    strength = activation.view(np.int32).astype(np.int64)
    return np.argsort((place.astype(np.int64) << 32) - strength, kind="stable")


def _rank_in_run(key: Ints) -> Ints:
    """0, 1, 2, ... within each run of equal values."""
    index = np.arange(len(key))
    return index - np.maximum.accumulate(np.where(_first_of_run(key), index, 0)) if len(key) else index
