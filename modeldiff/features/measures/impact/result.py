"""An `impact` artifact: its layout, and reading it back as figures of each feature.

Layout (normative; F features, C random directions and K checked features of a side; impacts in nats per window in which
it fires, NaN where the model has none or it never fires; quantiles: 5 %, 50 %, 95 %):
    impact.json
        format
        crosscoder, activations, stitch, stitch_r2    what was measured; held-out R² of the maps
        outlier_factor, outliers, pairs, windows    as in evaluation.json
        samples, seed                       draws of the second order
        partitions                          number of features of A, shared, B
        sides.*                             by side; stored_gap as in evaluation.json
            model, layer, stored_gap
        surface                             quantiles of the array
        controls.*                          by side, quantiles of random directions
            directions, own, other, asymmetry
        shared.*                            by side, quantiles of shared features; by the stitch alone
            features, asymmetry, asymmetry_stitched
        exact.*                             by side, second order against really removing
            features, ratio, rank_correlation
    impact.safetensors
        own_{a,b} (F,) float64              in the model, by its own decoder row
        stitched_{a,b} (F,) float64         of the model's features in the other one, the row moved by the stitch
        own_error_{a,b}, stitched_error_{a,b} (F,) float64    standard errors over windows
        other_{a,b} (F,) float64            as stitched, but of a shared feature by the other model's own row
        windows, firings (F,) int64         in the sample
        surface (F,) float64                held-out R² of the activation from the last word; NaN: it fires too rarely
        random_a_{own,other} (Ca,) float64    of random directions of A in A; moved into B
        random_b_{own,other} (Cb,) float64
        check_a_feature (Ka,) int64         features, in some windows, to second order and really removed
        check_a_second, check_a_exact (Ka,) float64    nats
        check_b_feature (Kb,) int64
        check_b_second, check_b_exact (Kb,) float64
KL is from the model's own predictions to those without the feature, summed over all positions of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.catalogue.stored import read_arrays, read_info
from modeldiff.records import number_or_none
from modeldiff.sides import EXCLUSIVE
from modeldiff.workspace import Artifact

FORMAT = 2
IMPACT_NAME = "impact.json"
ARRAYS_NAME = "impact.safetensors"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Impact:
    """What an `impact` artifact holds. Sides are "A" and "B"."""

    info: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def partition_F(self) -> NDArray[np.str_]:
        """A, shared or B."""
        sizes = self.info["partitions"]
        return np.repeat(list(sizes), list(sizes.values()))

    def columns(self, side: str) -> dict[str, Floats]:
        """From the side of one model, (F,), NaN where there is nothing to say: own, own_error and other, the nats per
        window in which it fires in this model, their error, and those in the other model; asymmetry, 1 where only this
        model minds and 0 where both do alike; surface; score, own x asymmetry x (1 - surface), which sorts lists."""
        found = {name: self.arrays[f"{name}_{side.lower()}"] for name in ("own", "own_error", "other")}
        asymmetry_F = asymmetry(found["own"], found["other"])
        surface_F = self.arrays["surface"]
        score_F = found["own"] * asymmetry_F * (1 - surface_F.clip(0, 1))
        return {**found, "asymmetry": asymmetry_F, "surface": surface_F, "score": score_F}

    def rows(
        self, side: str, *, exclusive: bool = False, min_windows: int = 1, top: int | None = None
    ) -> list[dict[str, Any]]:
        """Features that the side's model has and that fire, the highest score first, those without one last: id,
        partition, firings, windows and `columns` (None: nothing to say), as JSON data.

        Args:
            exclusive: without the shared ones; min_windows: without those that fire in fewer; top: at most so many.
        """
        columns, windows_F, firings_F = self.columns(side), self.arrays["windows"], self.arrays["firings"]
        partitions = (side,) if exclusive else (side, "shared")
        listed = np.flatnonzero(np.isin(self.partition_F, partitions) & (windows_F >= max(1, min_windows)))
        score = columns["score"][listed]
        order = listed[np.lexsort((listed, np.where(np.isnan(score), np.inf, -score)))][:top]
        return [
            {
                "id": int(i),
                "partition": str(self.partition_F[i]),
                "firings": int(firings_F[i]),
                "windows": int(windows_F[i]),
                **{name: number_or_none(column_F[i]) for name, column_F in columns.items()},
            }
            for i in order
        ]

    def of_feature(self, feature: int) -> dict[str, Any]:
        """By model that has a feature, what removing it does, and `surface`; empty when it never fires."""
        if self.arrays["windows"][feature] == 0:
            return {}
        found: dict[str, Any] = {"surface": number_or_none(self.arrays["surface"][feature])}
        for side, name in EXCLUSIVE.items():
            if self.partition_F[feature] in (name, "shared"):
                columns = self.columns(name)
                found[name] = {one: number_or_none(columns[one][feature]) for one in ("own", "other", "asymmetry")}
                found[name]["asymmetry_of_random"] = self.info["controls"][side]["asymmetry"]["50%"]
        return found


def read_impact(artifact: Artifact) -> Impact:
    """The figures of an artifact. Raises as `read_info`."""
    info = read_info(artifact, IMPACT_NAME, version=FORMAT, again="modeldiff features impact")
    return Impact(info, read_arrays(artifact, ARRAYS_NAME))


def asymmetry(own_F: Floats, other_F: Floats) -> Floats:
    """(own - other) / (own + other); NaN where both are zero or one is missing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (own_F - other_F) / (own_F + other_F)
