"""A `stitch` artifact, opened: the affine maps between a pair's activations, and where they may be tested.

Layout (normative; R² is over all dimensions together, on the part `report`, with the maps as stored; null: no number):
    stitch.json
        format
        activations, activations_digest     what was stitched, by name and by `Manifest.digest`
        sides.*                             fields of `SideInfo` (workspace/activations.py)
        outlier_factor, outliers            pairs left out: of a norm above so many times the median; number
        pairs                               by part (fit, choose, report), number used
        stretches                           S
        maps.*                              a_to_b and b_to_a
            ridge                           the regularisation that was chosen
            r2                              R² of the target's activations
            null_r2                         the same of a map, equally regularised, fitted on permuted pairs
        round_trip                          by side, R² of its activations from themselves by way of the other model
        identity                            by map, R² of the source's activations as they are, raw units; null: the
                                            widths differ
    maps.safetensors                        x_b = x_a w + bias, raw units
        a_to_b.w (Da, Db) float32
        a_to_b.bias (Db,) float32
        b_to_a.w (Db, Da) float32
        b_to_a.bias (Da,) float32
        stretch.first, stretch.stop, stretch.part (S,) int64    see `Stretches` (splits.py)

Legend: S stretches of rows, Da, Db widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.crosscoder.saving import read_tensors
from modeldiff.errors import DamagedError, InputError
from modeldiff.linear.maps import LinearMap
from modeldiff.records import check_fields
from modeldiff.splits import Stretches
from modeldiff.workspace import Artifact, Input, Workspace
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


def find_stitch(workspace: Workspace, activations: Input, ref: str | None) -> Artifact:
    """The stitch called `ref`; without it the latest of these activations. Raises InputError: there is none, or the one
    named is of other activations."""
    command = f"`modeldiff features stitch --activations {activations.label}`"
    if ref is not None:
        named = workspace.find("stitch", ref)
        fitted_on = named.manifest.inputs["activations"]
        if fitted_on.digest != activations.digest:
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
