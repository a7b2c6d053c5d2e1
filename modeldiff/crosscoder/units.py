"""The units a crosscoder works in: the only place that knows how raw activations and normalised ones convert.

Another normalisation is another set of fields here, which config.json holds, and another body for the methods.

Legend: N rows, M directions or features, D width of one model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.records import bounded
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore


@dataclass(frozen=True)
class Measured:
    """Statistics of one model's raw activations, from which its units and the first biases are made."""

    mean_D: torch.Tensor
    median_norm: float

    @classmethod
    def of(cls, x_ND: torch.Tensor) -> Measured:
        return cls(x_ND.mean(dim=0).cpu(), float(x_ND.norm(dim=1).median()))

    @classmethod
    def in_store(cls, store: ActivationStore) -> dict[str, Measured]:
        """By side, of all the activations of a store."""
        return {side: cls(store.mean[side], store.info.sides[side].median_norm) for side in SIDES}


@dataclass(frozen=True, kw_only=True)
class Units:
    """Each model's activations are scaled so that their median norm is sqrt((Da + Db) / 2) (paper B.1)."""

    width_a: int = bounded(least=1)
    """Da."""
    width_b: int = bounded(least=1)
    """Db."""
    scale_a: float = bounded(default=1.0, above=0)
    """Normalised activations of A = raw activations times this."""
    scale_b: float = bounded(default=1.0, above=0)

    @staticmethod
    def fitted(measured: Mapping[str, Measured]) -> dict[str, Any]:
        """The values of these fields for activations of both sides."""
        widths = {f"width_{side}": len(one.mean_D) for side, one in measured.items()}
        norm = math.sqrt(sum(widths.values()) / 2)
        return widths | {f"scale_{side}": norm / one.median_norm for side, one in measured.items()}

    def normalised(self, side: str, x_ND: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Raw activations of a model ("a" or "b") in normalised units, in their dtype; `out` may be `x_ND` itself."""
        return torch.mul(x_ND, self._scale(side), out=out)

    def raw(self, side: str, x_ND: torch.Tensor) -> torch.Tensor:
        return x_ND / self._scale(side)

    def raw_direction(self, side: str, d_MD: torch.Tensor) -> torch.Tensor:
        """What must be added to raw activations to add `d_MD` to normalised ones; also a gradient in raw activations
        as one in normalised ones."""
        return d_MD / self._scale(side)

    def raw_encoder(self, side: str, w_MD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(weights (M, D), biases (M,)) that read from raw activations what `w_MD` reads from normalised ones."""
        return w_MD * self._scale(side), w_MD.new_zeros(len(w_MD))

    def largest_norm(self, side: str, factor: float) -> float:
        """A raw norm: `factor` times the median of the activations that the units were made from."""
        return factor * math.sqrt((self.width_a + self.width_b) / 2) / self._scale(side)

    def _scale(self, side: str) -> float:
        return self.scale_a if side == "a" else self.scale_b
