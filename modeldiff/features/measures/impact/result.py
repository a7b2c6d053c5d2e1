"""An `impact` artifact: its layout, and reading it back as figures of each feature.

Layout (normative; F features of the crosscoder, C random directions and K checked features of a side, m is a and b):
    impact.json          inputs, sample, draws, seed, what the models are, and quantiles of the controls (see `summary`)
    impact.safetensors   impact_m (F,): nats per window in which the feature fires, by model m's own decoder row; NaN
                         where it has none or never fires. stitched_m (F,): the same in model m by the other model's
                         row, moved through the stitch. impact_m_error, stitched_m_error (F,): standard errors over
                         windows. windows, firings (F,): in the sample. surface_1, surface_2 (F,): held-out R² from the
                         last word, from the last two; NaN where too little fires. Controls: random_m_feature (C,)
                         whose codes a random direction of model m was given, random_m_own (C,) its nats per window in
                         m, random_m_other (C,) moved into the other model. Second order against really removing:
                         check_m_feature (K,), in some windows check_m_second and check_m_exact (K,) nats

KL is from the model's own predictions to those without the feature, summed over all positions of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.errors import DamagedError
from modeldiff.features.stored import read_arrays, read_info
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact

FORMAT = 1
IMPACT_NAME = "impact.json"
ARRAYS_NAME = "impact.safetensors"
FIELDS = {
    "format", "crosscoder", "activations", "stitch", "stitch_r2", "outlier_factor", "pairs", "outliers", "windows",
    "samples", "seed", "partitions", "sides", "controls", "shared", "exact",
    "surface",
}  # fmt: skip
PER_FEATURE = (
    *(f"{what}_{side}{error}" for what in ("impact", "stitched") for side in SIDES for error in ("", "_error")),
    "windows", "firings", "surface_1", "surface_2",
)  # fmt: skip
BESIDE = tuple(
    f"{group}_{side}_{what}"
    for side in SIDES
    for group, names in (("random", ("feature", "own", "other")), ("check", ("feature", "second", "exact")))
    for what in names
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImpactRow:
    """One feature, from the side of one of the models that have it."""

    id: int
    partition: str
    """A, shared or B."""
    firings: int
    windows: int
    own: float | None
    """Nats per window in which it fires, in the model whose side this is; None: it never fires."""
    own_error: float | None
    """None: it fires in one window only."""
    other: float | None
    """In the other model: by its own decoder row of a shared feature, else moved through the stitch."""
    other_error: float | None
    other_stitched: float | None
    """Moved through the stitch, of a shared feature too."""
    asymmetry: float | None
    """(own - other) / (own + other); None: neither model minds."""
    asymmetry_stitched: float | None
    nats_per_firing: float | None
    """In the model whose side this is."""
    surface: float | None
    """Held-out R² from the last word or the last two, whichever says more; None: too little fires to say."""
    score: float | None
    """Nats per firing x asymmetry x (1 - surface), by which the list is sorted."""


@dataclass(frozen=True)
class Impact:
    """What an `impact` artifact holds.

    Sides are "A" and "B". Arrays are (F,), NaN where there is nothing to say.
    """

    artifact: Artifact
    info: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def partition_F(self) -> NDArray[np.str_]:
        """A, shared or B."""
        return partition_names(self.info["partitions"])

    def own(self, side: str) -> Floats:
        """Nats per window in the side's model, by its own decoder row."""
        return self._of("impact", side)

    def other(self, side: str, *, stitched: bool = False) -> Floats:
        """Nats per window in the other model, of the features that the side's model has: by the other's own decoder
        row where it has one, else moved through the stitch (`stitched`: all of them moved)."""
        moved_F, decoder_F = self._of("stitched", _opposite(side)), self._of("impact", _opposite(side))
        return moved_F if stitched else np.where(self.partition_F == "shared", decoder_F, moved_F)

    def asymmetry(self, side: str, *, stitched: bool = False) -> Floats:
        """(own - other) / (own + other): 1, only the side's model minds; 0, both do alike."""
        return asymmetry(self.own(side), self.other(side, stitched=stitched))

    def per_firing(self, side: str) -> Floats:
        """Nats in the side's model for each pair on which the feature fires."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.own(side) * self.arrays["windows"] / self.arrays["firings"]

    def total(self, side: str) -> Floats:
        """Nats in the side's model over the whole sample."""
        return self.own(side) * self.arrays["windows"]

    def surface(self) -> Floats:
        """The larger of `surface_1` and `surface_2`."""
        return np.fmax(self.arrays["surface_1"], self.arrays["surface_2"])

    def score(self, side: str) -> Floats:
        """Nats per firing x asymmetry x (1 - surface, at least 0)."""
        return self.per_firing(side) * self.asymmetry(side) * (1 - self.surface().clip(0, 1))

    def rows(
        self, side: str, *, exclusive: bool = False, min_windows: int = 1, top: int | None = None
    ) -> list[ImpactRow]:
        """Features that the side's model has and that fire, the highest score first, those without one last.

        Args:
            exclusive: without the shared ones; min_windows: without those that fire in fewer; top: at most so many.
        """
        partitions = (side,) if exclusive else (side, "shared")
        listed_F = np.isin(self.partition_F, partitions) & (self.arrays["windows"] >= max(1, min_windows))
        listed = np.flatnonzero(listed_F)
        score = self.score(side)[listed]
        order = listed[np.lexsort((listed, np.where(np.isnan(score), np.inf, -score)))][:top]
        columns = {
            "own": self.own(side),
            "own_error": self._of("impact", side, "_error"),
            "other": self.other(side),
            "other_error": np.where(
                self.partition_F == "shared",
                self._of("impact", _opposite(side), "_error"),
                self._of("stitched", _opposite(side), "_error"),
            ),
            "other_stitched": self.other(side, stitched=True),
            "asymmetry": self.asymmetry(side),
            "asymmetry_stitched": self.asymmetry(side, stitched=True),
            "nats_per_firing": self.per_firing(side),
            "surface": self.surface(),
            "score": self.score(side),
        }
        return [
            ImpactRow(
                id=int(i),
                partition=str(self.partition_F[i]),
                firings=int(self.arrays["firings"][i]),
                windows=int(self.arrays["windows"][i]),
                **{name: _number(column_F[i]) for name, column_F in columns.items()},
            )
            for i in order
        ]

    def _of(self, what: str, side: str, suffix: str = "") -> Floats:
        found: Floats = self.arrays[f"{what}_{side.lower()}{suffix}"]
        return found


def read_impact(artifact: Artifact) -> Impact:
    """The figures of an artifact.

    Raises:
        DamagedError: a file is missing or damaged.
        InputError: written by a newer or older modeldiff.
    """
    info = read_info(artifact, IMPACT_NAME, version=FORMAT, fields=FIELDS, again="modeldiff features impact")
    arrays = read_arrays(artifact, ARRAYS_NAME)
    features = sum(info["partitions"].values())
    wrong = [name for name in PER_FEATURE if name not in arrays or arrays[name].shape != (features,)]
    wrong += [name for name in BESIDE if name not in arrays]
    if wrong:
        raise DamagedError(f"{artifact.file(ARRAYS_NAME)}: array '{wrong[0]}' is missing or wrong; {artifact.mend}")
    return Impact(artifact, info, arrays)


def asymmetry(own_F: Floats, other_F: Floats) -> Floats:
    """(own - other) / (own + other); NaN where both are zero or one is missing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (own_F - other_F) / (own_F + other_F)


def partition_names(sizes: dict[str, int]) -> NDArray[np.str_]:
    """(F,) A, shared or B."""
    return np.repeat(list(sizes), list(sizes.values()))


def quantiles(values: Floats) -> dict[str, float | None]:
    """5 %, 50 % and 95 % of the numbers among the values; None when there are none."""
    known = values[np.isfinite(values)]
    return {f"{q:.0%}": float(np.quantile(known, q)) if len(known) else None for q in (0.05, 0.5, 0.95)}


def summary(arrays: dict[str, NDArray[Any]], sizes: dict[str, int]) -> dict[str, Any]:
    """What random directions and shared features show beside the features.

    Returns:
        controls: by side, of random directions: own and other (nats per window) and asymmetry;
        shared: by side, of shared features: asymmetry by both models' decoder rows, and by the stitch, which is what
        an exclusive feature's would look like if the other model had it;
        exact: by side, of features that were really removed: second order / exact, and the rank correlation of both.
    """
    is_shared_F = partition_names(sizes) == "shared"
    controls, shared, exact = {}, {}, {}
    for side, other in (("a", "b"), ("b", "a")):
        own_C, other_C = arrays[f"random_{side}_own"], arrays[f"random_{side}_other"]
        controls[side] = {
            "directions": len(own_C),
            "own": quantiles(own_C),
            "other": quantiles(other_C),
            "asymmetry": quantiles(asymmetry(own_C, other_C)),
        }
        own_F = arrays[f"impact_{side}"][is_shared_F]
        shared[side] = {
            "features": int((arrays["windows"][is_shared_F] > 0).sum()),
            "asymmetry": quantiles(asymmetry(own_F, arrays[f"impact_{other}"][is_shared_F])),
            "asymmetry_stitched": quantiles(asymmetry(own_F, arrays[f"stitched_{other}"][is_shared_F])),
        }
        second_K, exact_K = arrays[f"check_{side}_second"], arrays[f"check_{side}_exact"]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio_K = np.where(exact_K > 0, second_K / exact_K, np.nan)
        exact[side] = {
            "features": len(exact_K),
            "ratio": quantiles(ratio_K),
            "rank_correlation": rank_correlation(second_K, exact_K),
        }
    return {"controls": controls, "shared": shared, "exact": exact}


def rank_correlation(x: Floats, y: Floats) -> float | None:
    """Spearman's, ties in the order they come; None for fewer than three."""
    if len(x) < 3:
        return None
    rank_x, rank_y = (np.argsort(np.argsort(one, kind="stable"), kind="stable") for one in (x, y))
    return float(np.corrcoef(rank_x, rank_y)[0, 1])


def _opposite(side: str) -> str:
    return "B" if side.upper() == "A" else "A"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
