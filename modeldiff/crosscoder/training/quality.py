"""How well a crosscoder reconstructs: fraction of variance explained (FVE).

Legend: B pairs, F features, D width of one model.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder.model import Both, Crosscoder
from modeldiff.sides import SIDES

# Rows that are taken to float64 at once.
_PIECE_ROWS = 256


class Explained:
    """Fraction of variance explained (FVE) on one side: 1 - SSE / SST, SST around the mean of all batches. Sums are
    float64."""

    def __init__(self, centre_D: torch.Tensor) -> None:
        """`centre_D` is any vector near the data's mean; it only keeps large numbers from cancelling."""
        self._centre_D = _double(centre_D)
        self._sum_D = torch.zeros_like(self._centre_D)
        self._squares, self._errors = (self._centre_D.new_zeros(()) for _ in range(2))
        self._rows = 0

    def add(self, x_BD: torch.Tensor, xhat_BD: torch.Tensor) -> None:
        for x_RD, xhat_RD in zip(x_BD.split(_PIECE_ROWS), xhat_BD.split(_PIECE_ROWS), strict=True):
            x_RD = _double(x_RD)
            from_centre_RD = x_RD - self._centre_D
            self._sum_D += from_centre_RD.sum(dim=0)
            self._squares += from_centre_RD.square().sum()
            self._errors += (x_RD - _double(xhat_RD)).square().sum()
            self._rows += len(x_RD)

    @property
    def fve(self) -> float:
        """0 when the data do not vary."""
        if self._rows == 0:
            return 0.0
        total = self._squares - self._sum_D.square().sum() / self._rows
        return float(torch.where(total > 0, 1 - self._errors / total, 0.0))


class Quality:
    """FVE of a crosscoder by side: with all features, with the shared ones only, and what the exclusive ones add."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        self._all, self._shared = (
            {side: Explained(crosscoder.decoder_bias(side).detach()) for side in SIDES} for _ in range(2)
        )

    @torch.no_grad()
    def add(self, x: Both, xhat: Both, xhat_shared: Both) -> None:
        """Take in activations, reconstructions, and those from the shared features alone, in normalised units."""
        for at, side in enumerate(SIDES):
            self._all[side].add(x[at], xhat[at])
            self._shared[side].add(x[at], xhat_shared[at])

    def add_code(self, x: Both, f_BF: torch.Tensor) -> None:
        """Take in activations in normalised units and their code."""
        shared_BF, shared = torch.zeros_like(f_BF), self._crosscoder.slices["shared"]
        shared_BF[:, shared] = f_BF[:, shared]
        self.add(x, self._crosscoder.decode(f_BF, raw=False), self._crosscoder.decode(shared_BF, raw=False))

    def figures(self) -> dict[str, dict[str, float]]:
        """`fve`, `fve_shared` and `gain_exclusive`, each by side."""
        fve, shared = ({side: one[side].fve for side in SIDES} for one in (self._all, self._shared))
        return {"fve": fve, "fve_shared": shared, "gain_exclusive": {side: fve[side] - shared[side] for side in SIDES}}


def _double(x: torch.Tensor) -> torch.Tensor:
    """On the CPU where the device (mps) has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def by_partition(crosscoder: Crosscoder, value_F: torch.Tensor) -> dict[str, float]:
    """Sum of a value per feature over each partition."""
    sums = torch.stack([value_F[features].sum() for features in crosscoder.slices.values()]).tolist()
    return dict(zip(crosscoder.slices, map(float, sums), strict=True))
