"""The vector that steering adds to the residual stream (paper 8.1).

Legend: D width of the steered model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.numpy import load_file

from modeldiff.catalogue.stored import STATISTICS_NAME
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace import Artifact


@dataclass(frozen=True)
class Direction:
    """A feature in one model, ready to be added."""

    unit_D: torch.Tensor
    """What strength 1 adds: maximum activation x decoder row, in the model's own units, float32."""
    partition: str
    """A, shared or B."""
    max_activation: float
    """In normalised feature units."""
    layer: int | None = None
    """Where it belongs: behind this block of the model, counted from 0; None: not known."""

    def at(self, strength: float) -> torch.Tensor:
        return strength * self.unit_D


def direction_of(crosscoder: Crosscoder, features: Artifact, feature: int, side: str) -> Direction:
    """The direction of a feature in model "a" or "b": alpha x s_max x d (paper 8.1).

    Args:
        features: the artifact whose maximum activations are used.

    Raises:
        InputError: there is no such feature, that model does not have it, or it never fires.
        DamagedError: the statistics belong to another crosscoder.
    """
    row_D = crosscoder.direction(feature, side)
    path = features.file(STATISTICS_NAME)
    max_F = load_file(path)["max_activation"]
    if len(max_F) != crosscoder.n_features:
        raise DamagedError(
            f"{path}: has {len(max_F)} features, the crosscoder {crosscoder.n_features}; {features.mend}"
        )
    maximum = float(max_F[feature])
    if maximum <= 0:
        raise InputError(
            f"feature {feature} never fires in {features.ref}, so its strength has no measure: choose one that is not "
            "dead (`modeldiff features` lists them)"
        )
    return Direction(maximum * row_D.float().cpu(), crosscoder.partition_of(feature), maximum)
