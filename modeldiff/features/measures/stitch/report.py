"""The numbers of a stitch, measured on pairs that neither the maps nor their regularisation have seen.

Legend: N pairs reported on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.console import progress
from modeldiff.linear.maps import LinearMap
from modeldiff.linear.quality import Prediction, measure
from modeldiff.linear.stitch import DIRECTIONS, map_predictions, number_or_none
from modeldiff.sides import SIDES
from modeldiff.splits import Stretches
from modeldiff.workspace.activations import ActivationStore

NORM_BINS = 5
TARGET = dict(zip(DIRECTIONS, ("b", "a"), strict=True))


def report(
    store: ActivationStore,
    stretches: Stretches,
    rows_N: NDArray[np.int64],
    norms: Mapping[str, NDArray[np.float64]],
    maps: Mapping[str, LinearMap],
    nulls: Mapping[str, LinearMap],
    *,
    outlier_factor: float,
    device: torch.device,
) -> dict[str, Any]:
    """The fields of stitch.json that hold an R² (see run.py), from one pass over the pairs reported on.

    Args:
        rows_N, norms: the rows of the store that are reported on, and by side their norms.
        maps, nulls: by direction, those to report on and those of permuted pairs; on the device.
    """
    predictions = _predictions(store, maps, nulls)
    bins = {side: norm_bins(norms[side]) for side in SIDES}
    groups: dict[tuple[str, int], NDArray[np.int64]] = {("all", 0): rows_N}
    groups |= {(side, index): rows_N[bins[side] == index] for side in SIDES for index in range(NORM_BINS)}
    ranges = stretches.ranges("report")
    with progress("stitch: held-out pairs", sum(stop - first for first, stop in ranges), "pairs") as bar:
        _, r2_PG = measure(
            store,
            ranges,
            list(groups.values()),
            list(predictions.values()),
            outlier_factor=outlier_factor,
            device=device,
            bar=bar,
        )

    def r2(prediction: str, group: tuple[str, int] = ("all", 0)) -> float | None:
        return number_or_none(r2_PG[list(predictions).index(prediction), list(groups).index(group)])

    def by_norm(direction: str) -> list[dict[str, Any]]:
        target = TARGET[direction]
        found = []
        for index in range(NORM_BINS):
            norm = norms[target][bins[target] == index]
            if len(norm):
                r2s = {"r2": r2(direction, (target, index)), "null_r2": r2(f"null {direction}", (target, index))}
                found.append({"from": float(norm.min()), "to": float(norm.max()), "pairs": len(norm), **r2s})
        return found

    return {
        "maps": {
            direction: {"r2": r2(direction), "null_r2": r2(f"null {direction}"), "by_norm": by_norm(direction)}
            for direction in DIRECTIONS
        },
        "round_trip": {side: r2(f"round trip {side}") for side in SIDES},
        "identity": {direction: r2(f"identity {direction}") for direction in DIRECTIONS}
        if f"identity {DIRECTIONS[0]}" in predictions
        else None,
    }


def norm_bins(norm_N: NDArray[np.float64], bins: int = NORM_BINS) -> NDArray[np.int64]:
    """(N,) the number of the equal part, by norm, that each pair falls in. Equal norms fall in the same one."""
    edges = np.quantile(norm_N, np.arange(1, bins) / bins)
    return np.searchsorted(edges, norm_N, side="left")


def _predictions(
    store: ActivationStore, maps: Mapping[str, LinearMap], nulls: Mapping[str, LinearMap]
) -> dict[str, Prediction]:
    there, back = maps["a_to_b"], maps["b_to_a"]
    found = dict(zip(DIRECTIONS, map_predictions(there, back), strict=True))
    null = map_predictions(nulls["a_to_b"], nulls["b_to_a"])
    found |= {f"null {direction}": one for direction, one in zip(DIRECTIONS, null, strict=True)}
    found["round trip a"] = Prediction("a", lambda x: back.apply(there.apply(x["a"])))
    found["round trip b"] = Prediction("b", lambda x: there.apply(back.apply(x["b"])))
    if store.widths[0] == store.widths[1]:
        found["identity a_to_b"] = Prediction("b", lambda x: x["a"])
        found["identity b_to_a"] = Prediction("a", lambda x: x["b"])
    return found
