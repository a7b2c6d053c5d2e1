"""A `stitch` artifact, opened: the affine maps between a pair's activations, and where they may be tested.

Layout (normative):
    stitch.json          format, what was stitched, R² and pairs (see features/measures/stitch/run.py)
    maps.safetensors     a_to_b.w (Da, Db), a_to_b.bias (Db,), b_to_a.w (Db, Da), b_to_a.bias (Da,) float32, raw units;
                         stretch.first, stretch.stop, stretch.part (S,) int64: see `splits.Stretches`

Legend: S stretches of rows, Da, Db widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.console import progress
from modeldiff.crosscoder.saving import read_tensors
from modeldiff.errors import DamagedError, InputError
from modeldiff.linear.maps import LinearMap
from modeldiff.linear.quality import Prediction, measure
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
    "format", "activations", "activations_digest", "sides", "outlier_factor", "pairs", "outliers", "stretches", "maps",
    "round_trip", "identity",
}  # fmt: skip
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

    def r2_on(self, store: ActivationStore, subsets: Sequence[NDArray[np.int64]]) -> list[SubsetR2]:
        """R² on some of the pairs, for example those on which a feature fires; all subsets in one pass.

        Of each subset only the held-out pairs count, without those whose norm the fit left out as outlying.

        Args:
            store: the activations that the maps were fitted on.
            subsets: each some rows of the store.

        Raises:
            InputError: other activations.
            DamagedError: the activations cannot be read.
        """
        if store.artifact.manifest.digest != self.info["activations_digest"]:
            raise InputError(
                f"the stitch was fitted on {self.info['activations']}, and {store.artifact.ref} is not the same: "
                "which of its pairs the maps have seen is not known; run `modeldiff features stitch` on it"
            )
        rows = [np.unique(subset) for subset in subsets]
        ranges = self.stretches.ranges("report")
        device = self.a_to_b.w_DD.device
        device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        predictions = map_predictions(self.a_to_b, self.b_to_a)
        factor = self.info["outlier_factor"]
        with progress("stitch: R² on subsets", sum(stop - first for first, stop in ranges), "pairs") as bar:
            counts_G, r2_PG = measure(store, ranges, rows, predictions, outlier_factor=factor, device=device, bar=bar)
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


def load_stitch(artifact: Artifact, *, device: str | torch.device = "cpu") -> Stitch:
    """The stitch of an artifact, with its maps on a device.

    Raises:
        DamagedError: a file is missing, truncated or altered, or the files do not fit together.
        InputError: written by a newer modeldiff.
    """
    path = artifact.file(STITCH_NAME)
    info = read_json(path)
    if info.get("format", FORMAT) > FORMAT:
        raise InputError(f"{path}: format {info['format']} is newer than this modeldiff reads: upgrade modeldiff")
    try:
        check_fields(info, required=FIELDS, where=str(path))
    except InputError as error:
        raise DamagedError(str(error)) from None
    width_a, width_b = (int(info["sides"][side]["width"]) for side in ("a", "b"))
    tensors: dict[str, torch.Tensor] = {}
    for name, source, target in (("a_to_b", width_a, width_b), ("b_to_a", width_b, width_a)):
        tensors |= {f"{name}.w": torch.empty(source, target), f"{name}.bias": torch.empty(target)}
    stretch = {name: torch.empty(int(info["stretches"]), dtype=torch.int64) for name in ("first", "stop", "part")}
    read_tensors(artifact.file(MAPS_NAME), tensors | {f"stretch.{name}": value for name, value in stretch.items()})
    maps = {}
    for name in DIRECTIONS:
        w_DD, bias_D = (tensors[f"{name}.{one}"].to(device) for one in ("w", "bias"))
        maps[name] = LinearMap(w_DD, bias_D, info["maps"][name]["ridge"], info["maps"][name]["r2"])
    return Stitch(maps["a_to_b"], maps["b_to_a"], Stretches(*(one.numpy() for one in stretch.values())), info)
