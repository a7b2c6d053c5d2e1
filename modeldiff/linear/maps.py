"""An affine map from one model's activations to the other's, and the choice of its regularisation.

The stitching paper trains such maps by gradient descent; with both models' activations at hand the minimum has a closed
form, ridge regression.

Legend: N pairs, D width of either model (w_DD: rows of the source, columns of the target).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modeldiff.linear.ridge import RIDGE, Moments, residual_sums, ridge_weights

RIDGES = tuple(10.0**exponent for exponent in range(-8, 2))
"""Regularisations to choose from (see RIDGE): from one that a few directions of very large variance hide nothing from,
to one that leaves hardly anything of the map."""


@dataclass(frozen=True)
class LinearMap:
    """x -> x W + bias, both sides in the models' own (raw) units."""

    w_DD: torch.Tensor
    """(D_source, D_target) float32."""
    bias_D: torch.Tensor
    """(D_target,) float32."""
    ridge: float
    """Regularisation it was fitted with (see RIDGE)."""
    r2: float | None = None
    """R² over all dimensions together, on pairs that neither the fit nor the choice of `ridge` has seen. None: not
    measured, or the target does not vary."""

    @classmethod
    def fitted(
        cls, fit: Moments, ridge: float, *, origin_x: torch.Tensor | None = None, origin_f: torch.Tensor | None = None
    ) -> LinearMap:
        """The ridge regression of target f on source x, from moments, no penalty on the bias, solved in float64.

        origin_x, origin_f: constants (D,) that were subtracted from the activations before they were summed; the map
        takes and gives activations without that.
        """
        w_DD = ridge_weights(fit, ridge)
        bias_D = (fit.f_G - fit.x_D @ w_DD) / max(1, fit.n)
        if origin_f is not None:
            bias_D = bias_D + origin_f.to(bias_D)
        if origin_x is not None:
            bias_D = bias_D - origin_x.to(bias_D) @ w_DD
        return cls(w_DD.float(), bias_D.float(), ridge)

    @property
    def widths(self) -> tuple[int, int]:
        return self.w_DD.shape[0], self.w_DD.shape[1]

    def apply(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Activations (..., D_source) as activations (..., D_target) of the target, in at least float32."""
        return self._times(x_ND) + self.bias_D.to(x_ND.device)

    def direction(self, d_ND: torch.Tensor, *, bias: bool = False) -> torch.Tensor:
        """Directions (..., D_source), such as decoder rows or steering vectors, in the target: the matrix only, since a
        direction is a difference of activations, from which the bias cancels. `bias`: add it nevertheless, as the DFC
        paper does (eq. 18)."""
        return self.apply(d_ND) if bias else self._times(d_ND)

    def _times(self, x_ND: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        return x_ND.to(dtype) @ self.w_DD.to(device=x_ND.device, dtype=dtype)


def ridge_scores(fit: Moments, held: Moments, ridges: Sequence[float] = RIDGES) -> dict[float, float]:
    """By regularisation, R² over all targets together on held-out pairs; NaN: they do not vary, or a part is empty."""
    scores = {}
    for ridge in ridges:
        if not fit.n or not held.n:
            scores[ridge] = math.nan
            continue
        residual_G, total_G = residual_sums(fit, held, ridge_weights(fit, ridge))
        total = float(total_G.sum())
        scores[ridge] = 1 - float(residual_G.sum()) / total if total > 0 else math.nan
    return scores


def best_ridge(scores: dict[float, float]) -> float:
    """The regularisation of the highest R², the largest of several; RIDGE where none has a number."""
    finite = {ridge: r2 for ridge, r2 in scores.items() if math.isfinite(r2)}
    return max(finite, key=lambda ridge: (finite[ridge], ridge), default=RIDGE)
