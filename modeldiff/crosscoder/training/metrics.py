"""Figures about a crosscoder that mean what they say: FVE, and counts per partition.

Legend: B pairs, R pairs of a piece, F features, Da, Db widths.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder.model import Crosscoder

# Taken to float64 at once.
_PIECE_ROWS = 256


class Explained:
    """Fraction of variance explained (FVE) on one side: 1 - SSE / SST, SST around the mean of the data it has seen.

    Predicting that mean scores 0, a perfect reconstruction 1. Sums are float64; data come in batches.
    """

    def __init__(self, centre_D: torch.Tensor) -> None:
        """`centre_D` is any vector near the data's mean; it only keeps large numbers from cancelling."""
        self._centre_D = _double(centre_D)
        self._sum_D = torch.zeros_like(self._centre_D)
        self._squares = 0.0
        self._errors = 0.0
        self._rows = 0

    def add(self, x_BD: torch.Tensor, xhat_BD: torch.Tensor) -> None:
        """Take in a batch and its reconstruction."""
        for x_RD, xhat_RD in zip(x_BD.split(_PIECE_ROWS), xhat_BD.split(_PIECE_ROWS), strict=True):
            self._add(_double(x_RD), _double(xhat_RD))

    def _add(self, x_RD: torch.Tensor, xhat_RD: torch.Tensor) -> None:
        from_centre_RD = x_RD - self._centre_D
        self._sum_D += from_centre_RD.sum(dim=0)
        self._squares += float(from_centre_RD.square().sum())
        self._errors += float((x_RD - xhat_RD).square().sum())
        self._rows += len(x_RD)

    @property
    def fve(self) -> float:
        """FVE of what was added; 0 when the data do not vary."""
        if self._rows == 0:
            return 0.0
        total = self._squares - float(self._sum_D.square().sum()) / self._rows
        return 1 - self._errors / total if total > 0 else 0.0


class Quality:
    """FVE of a crosscoder by side: with all features, with the shared ones only, and what the exclusive ones add."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        centres = (crosscoder.b_dec_a.detach(), crosscoder.b_dec_b.detach())
        self._all = [Explained(centre) for centre in centres]
        self._shared = [Explained(centre) for centre in centres]

    @torch.no_grad()
    def add(
        self,
        x: tuple[torch.Tensor, torch.Tensor],
        xhat: tuple[torch.Tensor, torch.Tensor],
        xhat_shared: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Take in a batch: activations, reconstructions, and those from the shared features alone; (a, b) each, in
        normalised units."""
        for side in (0, 1):
            self._all[side].add(x[side], xhat[side])
            self._shared[side].add(x[side], xhat_shared[side])

    def add_code(self, x: tuple[torch.Tensor, torch.Tensor], f_BF: torch.Tensor) -> None:
        """Take in a batch: activations (a, b) in normalised units and their code."""
        shared_BF = torch.zeros_like(f_BF)
        shared = self._crosscoder.slices["shared"]
        shared_BF[:, shared] = f_BF[:, shared]
        both = [self._crosscoder.decode(code, raw=False) for code in (f_BF, shared_BF)]
        self.add(x, *both)

    def figures(self) -> dict[str, dict[str, float]]:
        """`fve`, `fve_shared` and `gain_exclusive`, each by side."""
        fve = {side: one.fve for side, one in zip("ab", self._all, strict=True)}
        shared = {side: one.fve for side, one in zip("ab", self._shared, strict=True)}
        return {
            "fve": fve,
            "fve_shared": shared,
            "gain_exclusive": {side: fve[side] - shared[side] for side in fve},
        }


def _double(x: torch.Tensor) -> torch.Tensor:
    """float64, on the CPU where the device (mps) has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def by_partition(crosscoder: Crosscoder, value_F: torch.Tensor) -> dict[str, float]:
    """Sum of a value per feature over each partition."""
    return {name: float(value_F[features].sum()) for name, features in crosscoder.slices.items()}
