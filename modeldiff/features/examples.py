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
from numpy.typing import NDArray

Ints = NDArray[np.int64]

PASSAGE = 32
"""Rows of a document that give at most one example: about the length of the context that is shown."""


class TopRows:
    """For each feature the `n` buckets (documents or passages) in which it fires most strongly, and the strongest row
    of each.

    Attributes:
        activation (F, n) float32, 0 where empty; row (F, n) and bucket (F, n) int64, -1 where empty; strongest first.
    """

    def __init__(self, n_features: int, n: int) -> None:
        self.activation = np.zeros((n_features, n), np.float32)
        self.row = np.full((n_features, n), -1, np.int64)
        self.bucket = np.full((n_features, n), -1, np.int64)

    def update(self, feature: Ints, activation: NDArray[np.float32], row: Ints, bucket: Ints) -> None:
        """Take firings in: one entry each in four arrays of equal length, ordered by row.

        Rows of one bucket follow each other. Later calls bring later rows; the first bucket of a call may be the last
        one of the call before it.
        """
        if not len(feature):
            return
        first_bucket = bucket[0]
        chance = activation > self.activation[feature, -1]
        feature, activation, row, bucket = _taken(chance, feature, activation, row, bucket)
        if not len(feature):
            return
        by_feature = np.argsort(feature, kind="stable")
        feature, activation, row, bucket = _taken(by_feature, feature, activation, row, bucket)
        strongest = _strongest_of_runs(_first_of_run(feature, bucket), activation)
        feature, activation, row, bucket = _taken(strongest, feature, activation, row, bucket)

        touched, place = np.unique(feature, return_inverse=True)
        old = {name: getattr(self, name)[touched] for name in ("activation", "row", "bucket")}
        fresh = _against_held(old, place, activation, bucket, int(first_bucket))
        held = old["row"] >= 0
        # Of one feature, what is held comes before what is new: it has earlier rows.
        place = np.concatenate([np.nonzero(held)[0], place[fresh]])
        activation = np.concatenate([old["activation"][held], activation[fresh]])
        row = np.concatenate([old["row"][held], row[fresh]])
        bucket = np.concatenate([old["bucket"][held], bucket[fresh]])

        order = _by_strength(place, activation)
        rank = _rank_in_run(place[order])
        order, rank = order[rank < self.row.shape[1]], rank[rank < self.row.shape[1]]
        self.activation[touched], self.row[touched], self.bucket[touched] = 0, -1, -1
        at = (touched[place[order]], rank)
        self.activation[at], self.row[at], self.bucket[at] = activation[order], row[order], bucket[order]


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
    n_features, n = by_document.row.shape
    tops = (by_document, by_passage)
    held = [top.row >= 0 for top in tops]
    feature = np.concatenate([np.nonzero(one)[0] for one in held])
    later = np.repeat([0, 1], [one.sum() for one in held])
    activation = np.concatenate([top.activation[one] for top, one in zip(tops, held, strict=True)])
    row = np.concatenate([top.row[one] for top, one in zip(tops, held, strict=True)])
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


def _taken(index: NDArray[Any], *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    return tuple(array[index] for array in arrays)


def _against_held(
    old: dict[str, NDArray[Any]], place: Ints, activation: NDArray[np.float32], bucket: Ints, first_bucket: int
) -> NDArray[np.bool_]:
    """Which new entries to take: not those whose bucket is held with as strong a row; a weaker one is dropped.

    Only the first bucket of a call can be held already.
    """
    fresh = np.ones(len(place), bool)
    again = np.flatnonzero(bucket == first_bucket)
    entry, slot = np.nonzero(old["bucket"][place[again]] == first_bucket)
    entry = again[entry]
    better = activation[entry] > old["activation"][place[entry], slot]
    fresh[entry[~better]] = False
    old["row"][place[entry[better]], slot[better]] = -1
    return fresh


def _strongest_of_runs(first: NDArray[np.bool_], activation: NDArray[np.float32]) -> Ints:
    """The index of the strongest entry of each run, the earliest of equals; `first` marks where runs start."""
    starts = np.flatnonzero(first)
    most = np.maximum.reduceat(activation, starts)
    at_most = np.flatnonzero(activation == most[np.cumsum(first) - 1])
    run = np.searchsorted(starts, at_most, side="right")
    return at_most[_first_of_run(run)]


def _by_strength(place: Ints, activation: NDArray[np.float32]) -> Ints:
    """The order by place, then falling activation, then as they come. Places below 2^31, activations of at least 0."""
    # The bits of floats that are not negative rise as their values do.
    strength = activation.view(np.int32).astype(np.int64)
    return np.argsort((place.astype(np.int64) << 32) - strength, kind="stable")


def _rank_in_run(key: Ints) -> Ints:
    """0, 1, 2, ... within each run of equal values."""
    index = np.arange(len(key))
    return index - np.maximum.accumulate(np.where(_first_of_run(key), index, 0)) if len(key) else index
