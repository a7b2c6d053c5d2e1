"""How much of a feature's activation a linear map of one model's activations explains, on pairs it was not fitted on.

Ridge regression in closed form from sums over pairs: one pass, any number of features at once, float64.

Legend: N pairs, D width of one model, G features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

RIDGE = 1e-4
"""Regularisation, as a share of the mean of the Gram matrix's diagonal: enough for a stable solution, too little to
hide a direction of small variance."""
# Relative error of a float64 sum of squares over millions of pairs.
_ROUNDING = 1e-12


@dataclass
class Moments:
    """Sums over the pairs of one part (fitted on, or held out): of inputs x, of targets f, and of their products."""

    n: int
    x_D: torch.Tensor
    xx_DD: torch.Tensor
    f_G: torch.Tensor
    ff_G: torch.Tensor
    fx_GD: torch.Tensor

    @classmethod
    def empty(cls, width: int, targets: int, device: torch.device | str = "cpu") -> Moments:
        shapes = ((width,), (width, width), (targets,), (targets,), (targets, width))
        return cls(0, *(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add_inputs(self, x_ND: torch.Tensor) -> None:
        """Take in inputs (float64, on the sums' device) of pairs, not their targets."""
        self.n += len(x_ND)
        self.x_D += x_ND.sum(dim=0)
        self.xx_DD += _gram(x_ND)

    def for_targets(self, targets: int) -> Moments:
        """The same inputs for other targets, of which no sums are taken yet."""
        empty = Moments.empty(0, targets, self.x_D.device)
        fx_GD = self.fx_GD.new_zeros(targets, len(self.x_D))
        return Moments(self.n, self.x_D, self.xx_DD, empty.f_G, empty.ff_G, fx_GD)

    def add_dense(self, x_ND: torch.Tensor, f_NG: torch.Tensor) -> None:
        x_ND, f_NG = x_ND.double(), f_NG.double()
        self.add_inputs(x_ND)
        self.f_G += f_NG.sum(dim=0)
        self.ff_G += f_NG.square().sum(dim=0)
        self.fx_GD += f_NG.T @ x_ND

    def centred(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(xx_DD, ff_G, fx_GD) about this part's own means."""
        n = max(1, self.n)
        return (
            self.xx_DD - torch.outer(self.x_D, self.x_D) / n,
            self.ff_G - self.f_G.square() / n,
            self.fx_GD - torch.outer(self.f_G, self.x_D) / n,
        )


def _gram(x_ND: torch.Tensor) -> torch.Tensor:
    """x^T x, (D, D) float64."""
    if x_ND.device.type != "cpu":
        return x_ND.T @ x_ND
    # numpy makes use of the symmetry, which is half of the work; torch does not.
    x = x_ND.numpy()
    return torch.from_numpy(x.T @ x)


def ridge_weights(fit: Moments, ridge: float = RIDGE) -> torch.Tensor:
    """w_DG of the ridge regression of f on x, both about their means: solves (xx + ridge mean(diag) 1) w = xf."""
    xx_DD, _, fx_GD = fit.centred()
    width = len(xx_DD)
    # Inputs that do not vary leave rounding errors of their squares: these must not pass for variance.
    floor = _ROUNDING * float(fit.xx_DD.trace()) / width
    alpha = max(ridge * float(xx_DD.trace()) / width, floor, torch.finfo(torch.float64).tiny)
    xx_DD.diagonal().add_(alpha)
    return torch.cholesky_solve(fx_GD.T, torch.linalg.cholesky(xx_DD))


def held_out_r2(fit: Moments, held: Moments) -> torch.Tensor:
    """(G,) 1 - residual / total sum of squares on the held-out pairs of the regression fitted on the others.

    0: no better than the held-out mean; below 0: worse; NaN: the target does not vary, or a part is empty.
    """
    if not fit.n or not held.n:
        return torch.full_like(fit.f_G, torch.nan)
    residual_G, total_G = residual_sums(fit, held, ridge_weights(fit))
    return torch.where(total_G > 0, 1 - residual_G / total_G, torch.nan)


def residual_sums(fit: Moments, held: Moments, w_DG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(residual_G, total_G): sums of squares on the held-out pairs, of what the regression with the weights `w_DG` and
    the intercept of the fitted part leaves over, and about the held-out mean. Both parts must hold pairs."""
    xx_DD, ff_G, fx_GD = held.centred()
    # The regression's intercept belongs to the means of the fitted part; on the held-out pairs the means differ.
    shift_G = (held.f_G / held.n - fit.f_G / fit.n) - (held.x_D / held.n - fit.x_D / fit.n) @ w_DG
    residual_G = ff_G - 2 * (fx_GD.T * w_DG).sum(0) + (w_DG * (xx_DD @ w_DG)).sum(0) + held.n * shift_G.square()
    return residual_G, ff_G
