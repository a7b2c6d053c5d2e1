"""What is added to which model: the feature's direction in the model steered and in the other one.

Legend: D width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.direction import Direction, direction_of
from modeldiff.errors import InputError
from modeldiff.linear.stitch import Stitch, load_stitch
from modeldiff.lm.harvested import Harvested
from modeldiff.sides import OTHER
from modeldiff.steer.settings import SteerSettings
from modeldiff.workspace import Artifact


@dataclass(frozen=True)
class Push:
    """One model and what strength 1 adds to it."""

    target: Harvested
    unit_D: torch.Tensor
    """In the model's own units, float32."""
    by: Literal["decoder", "stitch"]
    """The feature's decoder row in this model, or the one of the other model moved through a stitch."""
    stitch: Artifact | None = None
    """Where the map is from."""
    bias: bool = False
    """Whether the map's constant was added (eq. 18)."""
    r2: float | None = None
    """Held-out R² of the map over all activations; `null_r2`: of one that was fitted on permuted pairs."""
    null_r2: float | None = None

    @property
    def model(self) -> str:
        """A or B."""
        return self.target.side.upper()

    @property
    def words(self) -> str:
        """What pushes it, for tables and figures."""
        bias = " + constant" if self.bias else ""
        return f"moved by {self.stitch.ref}{bias}" if self.stitch else "its own decoder row"

    @property
    def in_medians(self) -> float:
        """Norm of what strength 1 adds, in units of the median norm of the model's activations."""
        return float(self.unit_D.norm()) / self.target.median_norm

    def described(self) -> dict[str, Any]:
        """For steering.json."""
        return {
            "model_name": self.target.ref.name,
            "revision": self.target.ref.revision,
            "layer": self.target.layer,
            "by": self.by,
            "stitch": self.stitch.ref if self.stitch else None,
            "stitch_bias": self.bias,
            "stitch_r2": self.r2,
            "stitch_null_r2": self.null_r2,
            "unit_norm": float(self.unit_D.norm()),
            "unit_norm_in_medians": self.in_medians,
        }


def uses_stitch(settings: SteerSettings, partition: str) -> bool:
    """Whether the other model is steered by a direction that was moved.

    Raises:
        InputError: the other model has no decoder row, or the bias of a map that is not used was asked for.
    """
    if settings.other_by == "decoder" and partition != "shared":
        raise InputError(
            f"feature {settings.feature} is {partition}-exclusive, so the other model has no decoder row of it: "
            "use --other-by stitch"
        )
    moved = settings.other_by == "stitch" or (settings.other_by == "auto" and partition != "shared")
    if settings.stitch_bias and not moved:
        raise InputError(
            f"feature {settings.feature} is shared, and each model is steered by its own decoder row, where "
            "--stitch-bias says nothing: add --other-by stitch"
        )
    return moved


def other_push(
    settings: SteerSettings,
    target: Harvested,
    direction: Direction,
    crosscoder: Crosscoder,
    features: Artifact,
    stitch: Artifact | None,
) -> Push:
    """How the model that was not named is steered.

    Args:
        direction: of the feature in the model that was named.
        stitch: moves it; None: the other model's own decoder row.
    """
    if stitch is None:
        own = direction_of(crosscoder, features, settings.feature, target.side)
        return Push(target, own.unit_D, "decoder")
    return moved_push(target, direction.unit_D, load_stitch(stitch), stitch, bias=settings.stitch_bias)


def moved_push(target: Harvested, unit_D: torch.Tensor, maps: Stitch, artifact: Artifact, *, bias: bool) -> Push:
    """A direction of the one model, in the model `target`: W only, or W and the constant (eq. 18)."""
    source = OTHER[target.side]
    found = maps.info["maps"][f"{source}_to_{target.side}"]
    moved_D = maps.from_side(source).direction(unit_D, bias=bias)
    return Push(target, moved_D, "stitch", artifact, bias, found["r2"], found.get("null_r2"))
