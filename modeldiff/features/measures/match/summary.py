"""How many features of each partition come back in other dictionaries, and in which partition, beside what chance does.

Legend: R features of the reference that were looked for, O other dictionaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.features.measures.match.matching import NOWHERE, ONE_SIDED

PARTITIONS = ("A", "shared", "B")
PLACES = {"A": 0, "shared": 1, "B": 2, "one-sided": ONE_SIDED, "none": NOWHERE}
"""Where a feature came back, as numbered in the arrays; one-sided and none: it did not."""

Arrays = dict[str, NDArray[Any]]


def summarise(arrays: Arrays, others: list[str]) -> dict[str, Any]:
    """The summary by partition of the reference, of those that were looked for, as JSON data.

    Counts are of alive features, those that fire at least once; the dead are counted apart. `chance` holds the same
    figures with the pairs permuted between the two dictionaries.

    Args:
        arrays: as in match.safetensors.
        others: refs of the other crosscoders, in the arrays' order.
    """
    summary = {}
    for number, partition in enumerate(PARTITIONS):
        mine_R = arrays["partition"] == number
        if not mine_R.any():
            continue
        alive_R = mine_R & (arrays["firing_count"] > 0)
        summary[partition] = {
            "features": int(mine_R.sum()),
            "alive": int(alive_R.sum()),
            "dead": int((mine_R & ~alive_R).sum()),
            "against": [
                {
                    "crosscoder": other,
                    **_figures(arrays, "", index, alive_R),
                    "chance": _figures(arrays, "chance_", index, alive_R),
                }
                for index, other in enumerate(others)
            ],
            "mean": {**_mean(arrays["came_back"][:, alive_R]), "chance": _mean(arrays["chance_came_back"][:, alive_R])},
            "in_all": {
                **_in_all(arrays["came_back"][:, alive_R]),
                "chance": _in_all(arrays["chance_came_back"][:, alive_R]),
            },
        }
    return summary


def _figures(arrays: Arrays, prefix: str, other: int, alive_R: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts by place, and quantiles of the best correlation , mutual or not (None: no feature is alive)."""
    correlation = arrays[f"{prefix}correlation"][other][alive_R].astype(np.float64)
    quantiles = {"median": 0.5, "99%": 0.99, "max": 1.0}
    return {
        "came_back": {
            place: int((arrays[f"{prefix}came_back"][other][alive_R] == number).sum())
            for place, number in PLACES.items()
        },
        "correlation": {
            name: float(np.quantile(correlation, q)) if len(correlation) else None for name, q in quantiles.items()
        },
    }


def _mean(came_back_OR: NDArray[np.int8]) -> dict[str, float]:
    """Features by place, averaged over the other dictionaries."""
    return {place: float((came_back_OR == number).sum(axis=1).mean()) for place, number in PLACES.items()}


def _in_all(came_back_OR: NDArray[np.int8]) -> dict[str, int]:
    """Features that came back in the same place in every other dictionary; `somewhere`: in any partition of each."""
    counts = {place: int((came_back_OR == number).all(axis=0).sum()) for place, number in PLACES.items()}
    return {**counts, "somewhere": int((came_back_OR >= 0).all(axis=0).sum())}
