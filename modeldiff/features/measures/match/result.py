"""A `match` artifact: which features came back where, reading it back, and figures of each feature.

Layout (normative; R features of the reference that were looked for, O other crosscoders; partitions are 0, 1, 2 for A,
shared, B):
    match.json
        format
        reference, others, activations      crosscoders, and on what they were compared
        pairs, outliers                     compared on; left out for their norm
        threshold                           least correlation
        sizes[]                             number of features, of the reference first
            A, shared, B
        summary.*                           by partition of the reference, if any are looked for: `summarise`
            features, alive                 looked for; of them firing: only they count below
            against[]                       of the others, in order
                crosscoder
                came_back                   number by where (WHERE)
                correlation, chance         medians of the best correlation; with the pairs permuted
            in_all                          number that came back at the same place everywhere, by where
    match.safetensors
        feature (R,) int32
        partition (R,) int8
        firing_count (R,) int64
        match (O, R) int32                  the feature that fires most alike; -1: there is none
        correlation, chance_correlation (O, R) float32    with it; with the pairs permuted
        came_back (O, R) int8               the match's partition; -1: it correlates too little, -2: it is not mutual
        cosine_{a,b} (O, R) float32         of the two decoder rows; NaN where one of the two lacks the side
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modeldiff.catalogue.stored import Arrays, read_arrays, read_info
from modeldiff.records import number_or_none
from modeldiff.workspace import Artifact

FORMAT = 2
MATCH_NAME = "match.json"
ARRAYS_NAME = "match.safetensors"
PARTITIONS = ("A", "shared", "B")
WHERE = {"A": 0, "shared": 1, "B": 2, "one-sided": -2, "none": -1}
"""Where a feature came back, as numbered in the arrays: one-sided and none: it did not."""


def summarise(arrays: Arrays, others: list[str]) -> dict[str, Any]:
    """By partition of the reference, of those that were looked for: the number of `features`, how many of them are
    `alive` (fire at least once; only they count below), `against` each of the `others` (refs, in the arrays' order) how
    many came back where and the median of the best correlation, also with the pairs permuted (`chance`), and how many
    came back at the same place `in_all`."""
    summary = {}
    for number, partition in enumerate(PARTITIONS):
        mine_R = arrays["partition"] == number
        if not mine_R.any():
            continue
        alive_R = mine_R & (arrays["firing_count"] > 0)
        back_OR, correlation_OR, chance_OR = (
            arrays[name][:, alive_R] for name in ("came_back", "correlation", "chance_correlation")
        )
        against = [
            {
                "crosscoder": other,
                "came_back": {name: int((back_OR[index] == code).sum()) for name, code in WHERE.items()},
                "correlation": float(np.median(correlation_OR[index])) if alive_R.any() else None,
                "chance": float(np.median(chance_OR[index])) if alive_R.any() else None,
            }
            for index, other in enumerate(others)
        ]
        in_all = {name: int((back_OR == code).all(axis=0).sum()) for name, code in WHERE.items()}
        sizes = {"features": int(mine_R.sum()), "alive": int(alive_R.sum())}
        summary[partition] = {**sizes, "against": against, "in_all": in_all}
    return summary


def read_match(artifact: Artifact) -> tuple[dict[str, Any], Arrays]:
    """(content of match.json, of match.safetensors). Raises as `read_info`."""
    info = read_info(artifact, MATCH_NAME, version=FORMAT, again="modeldiff features match")
    return info, read_arrays(artifact, ARRAYS_NAME)


def rows(info: dict[str, Any], arrays: Arrays, partition: str, top: int | None = None) -> list[dict[str, Any]]:
    """Alive features of a partition of the reference as JSON data: those that came back in most crosscoders in the
    same partition first, then those that came back in any, then by mean correlation. density: share of the pairs on
    which it fires; came_back: in so many crosscoders; found: in each other crosscoder (`_found`)."""
    own = PARTITIONS.index(partition)
    alive = np.flatnonzero((arrays["partition"] == own) & (arrays["firing_count"] > 0))
    back_OR = arrays["came_back"][:, alive]
    mean = arrays["correlation"][:, alive].mean(axis=0)
    order = np.lexsort((alive, -mean, -(back_OR >= 0).sum(axis=0), -(back_OR == own).sum(axis=0)))[:top]
    return [
        {
            "id": int(arrays["feature"][r]),
            "partition": partition,
            "density": float(arrays["firing_count"][r]) / info["pairs"],
            "came_back": int((arrays["came_back"][:, r] >= 0).sum()),
            "found": [_found(info, arrays, other, r) for other in range(len(back_OR))],
        }
        for r in alive[order]
    ]


def _found(info: dict[str, Any], arrays: Arrays, other: int, r: int) -> dict[str, Any]:
    """The best match; None: no feature ever fires with this one more than by chance, or one lacks the side."""
    sizes, match = list(info["sizes"][1 + other].values()), int(arrays["match"][other, r])
    return {
        "crosscoder": info["others"][other],
        "id": match if match >= 0 else None,
        "partition": PARTITIONS[int(np.searchsorted(np.cumsum(sizes), match, side="right"))] if match >= 0 else None,
        "correlation": float(arrays["correlation"][other, r]),
        "chance": float(arrays["chance_correlation"][other, r]),
        "came_back": bool(arrays["came_back"][other, r] >= 0),
        **{name: number_or_none(arrays[name][other, r]) for name in ("cosine_a", "cosine_b")},
    }
