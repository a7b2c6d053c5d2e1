"""A `stitch` artifact, opened: the affine maps between a pair's activations, and where they may be tested.

Layout (normative):
    stitch.json          format, what was stitched, R² and pairs (see modeldiff/stitch/run.py)
    maps.safetensors     a_to_b.w (Da, Db), a_to_b.bias (Db,), b_to_a.w (Db, Da), b_to_a.bias (Da,) float32, raw units;
                         stretch.first, stretch.stop, stretch.part (S,) int64: rows of the activations, and their part
                         as an index into PARTS

Legend: S stretches of rows, Da, Db widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.console import progress
from modeldiff.crosscoder.saving import read_tensors
from modeldiff.errors import DamagedError, InputError
from modeldiff.linear.maps import LinearMap
from modeldiff.linear.quality import Prediction, measure, norm_limits
from modeldiff.records import check_fields
from modeldiff.splits import Stretches
from modeldiff.workspace import Artifact, Input, Workspace
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.files import read_json

FORMAT = 1
STITCH_NAME = "stitch.json"
MAPS_NAME = "maps.safetensors"
DIRECTIONS = ("a_to_b", "b_to_a")
FIELDS = {
    "format",
    "activations",
    "activations_digest",
    "sides",
    "outlier_factor",
    "pairs",
    "outliers",
    "stretches",
    "maps",
    "round_trip",
    "identity",
}
"""The fields of stitch.json."""


@dataclass(frozen=True)
class SubsetR2:
    """How well the maps do on some of the pairs."""

    pairs: int
    """Pairs of the subset that the maps have not seen: only they count."""
    a_to_b: float | None
    """R² over all dimensions, about the mean of these very pairs; None: no pairs, or they do not vary."""
    b_to_a: float | None


@dataclass(frozen=True)
class Stitch:
    """Both maps between the models of a pair, raw units."""

    a_to_b: LinearMap
    b_to_a: LinearMap
    stretches: Stretches
    info: dict[str, Any]
    """stitch.json."""

    def from_side(self, side: str) -> LinearMap:
        """The map that takes model "a" or "b" to the other one."""
        return self.a_to_b if side == "a" else self.b_to_a

    def to(self, device: torch.device | str) -> Stitch:
        """The same with the maps on another device."""
        return Stitch(self.a_to_b.to(device), self.b_to_a.to(device), self.stretches, self.info)

    def held_out_rows(self) -> NDArray[np.int64]:
        """Rows of the activations that neither the maps nor the choice of their regularisation have seen."""
        return self.stretches.rows("report")

    def r2_on(
        self, store: ActivationStore, subsets: Sequence[NDArray[np.integer] | NDArray[np.bool_]]
    ) -> list[SubsetR2]:
        """R² on some of the pairs, for example those on which a feature fires; all subsets in one pass.

        Of each subset only the held-out pairs count, without those whose norm the fit left out as outlying.

        Args:
            store: the activations that the maps were fitted on.
            subsets: each the numbers of rows of the store, in any order, or a mask over all its rows.

        Raises:
            InputError: other activations, or rows that they do not have.
            DamagedError: the activations cannot be read.
        """
        if store.artifact.manifest.digest != self.info["activations_digest"]:
            raise InputError(
                f"the stitch was fitted on {self.info['activations']}, and {store.artifact.ref} is not the same: "
                "which of its pairs the maps have seen is not known; run `modeldiff features stitch` on it"
            )
        rows = [_row_numbers(subset, store) for subset in subsets]
        ranges = self.stretches.ranges("report")
        device = self.a_to_b.w_DD.device
        device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        predictions = map_predictions(self.a_to_b, self.b_to_a)
        limits = norm_limits(store, self.info["outlier_factor"])
        with progress("stitch: R² on subsets", sum(stop - first for first, stop in ranges), "pairs") as bar:
            counts_G, r2_PG = measure(store, ranges, rows, predictions, limits=limits, device=device, bar=bar)
        return [
            SubsetR2(int(n), number_or_none(to_b), number_or_none(to_a))
            for n, to_b, to_a in zip(counts_G, *r2_PG, strict=True)
        ]


def map_predictions(a_to_b: LinearMap, b_to_a: LinearMap) -> list[Prediction]:
    """What the maps predict: B's activations from A's, and A's from B's."""
    return [Prediction("b", lambda x: a_to_b.apply(x["a"])), Prediction("a", lambda x: b_to_a.apply(x["b"]))]


def number_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def find_stitch(workspace: Workspace, activations: Input, ref: str | None, *, of_others: bool = False) -> Artifact:
    """The stitch called `ref`; without it the latest of these activations.

    Args:
        of_others: one that is named may be of other activations; the caller checks that it fits.

    Raises:
        InputError: there is none, or the one named is of other activations.
    """
    command = f"`modeldiff features stitch --activations {activations.label}`"
    if ref is not None:
        named = workspace.find("stitch", ref)
        fitted_on = named.manifest.inputs["activations"]
        if not of_others and fitted_on.digest != activations.digest:
            raise InputError(
                f"{named.ref} is of {fitted_on.label}, not of {activations.label}: leave out --stitch, or run {command}"
            )
        return named
    for stitch in reversed(workspace.artifacts("stitch")):
        if stitch.manifest.inputs["activations"].digest == activations.digest:
            return stitch
    raise InputError(f"no stitch of {activations.label} yet, by which directions are moved: run {command} first")


def load_stitch(source: Artifact | Path, *, device: str | torch.device = "cpu") -> Stitch:
    """The stitch of an artifact (its files are checked) or of a folder.

    Raises:
        DamagedError: a file is missing, truncated or altered, or the files do not fit together.
        InputError: written by a newer modeldiff.
    """
    if isinstance(source, Artifact):
        info_path, maps_path = source.file(STITCH_NAME), source.file(MAPS_NAME)
    else:
        info_path, maps_path = source / STITCH_NAME, source / MAPS_NAME
    info = read_json(info_path)
    _check(info, info_path)
    width = {side: int(info["sides"][side]["width"]) for side in ("a", "b")}
    maps = {}
    tensors: dict[str, torch.Tensor] = {}
    for direction, (x, y) in zip(DIRECTIONS, (("a", "b"), ("b", "a")), strict=True):
        found = info["maps"][direction]
        maps[direction] = LinearMap(
            torch.empty(width[x], width[y]), torch.empty(width[y]), float(found["ridge"]), found["r2"]
        )
        tensors |= {f"{direction}.w": maps[direction].w_DD, f"{direction}.bias": maps[direction].bias_D}
    stretch = {name: torch.empty(int(info["stretches"]), dtype=torch.int64) for name in ("first", "stop", "part")}
    read_tensors(maps_path, tensors | {f"stretch.{name}": value for name, value in stretch.items()})
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DamagedError(f"{maps_path}: tensor '{name}' holds values that are not finite")
    stretches = Stretches(*(stretch[name].numpy() for name in ("first", "stop", "part")))
    return Stitch(maps["a_to_b"], maps["b_to_a"], stretches, info).to(device)


def _check(info: dict[str, Any], path: Path) -> None:
    found = info.get("format")
    if not isinstance(found, int):
        raise DamagedError(f"{path}: field 'format' is missing or not a number")
    if found > FORMAT:
        raise InputError(f"{path}: format {found} is newer than this modeldiff reads ({FORMAT}): upgrade modeldiff")
    try:
        check_fields(info, required=FIELDS, where=str(path))
        for side in ("a", "b"):
            _positive(info["sides"][side]["width"])
        for direction in DIRECTIONS:
            float(info["maps"][direction]["ridge"])
            float(info["maps"][direction]["r2"] or 0)
        _positive(info["stretches"])
    except InputError as error:
        raise DamagedError(str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: a field of 'sides', 'maps' or 'stretches' is missing or wrong ({error})") from None


def _positive(value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"a whole number above 0 expected, found {value!r}")


def _row_numbers(subset: NDArray[Any], store: ActivationStore) -> NDArray[np.int64]:
    """Ascending row numbers from row numbers or a mask."""
    subset = np.asarray(subset)
    if subset.dtype == bool:
        if subset.shape != (store.pairs,):
            raise InputError(f"a mask over {store.pairs} pairs expected, found one of {subset.size}")
        return np.flatnonzero(subset)
    rows = np.unique(subset).astype(np.int64)
    if len(rows) and (rows[0] < 0 or rows[-1] >= store.pairs):
        raise InputError(f"rows 0 to {store.pairs - 1} expected, found {rows[0]} to {rows[-1]}")
    return rows
