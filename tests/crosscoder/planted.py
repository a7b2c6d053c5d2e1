"""Activations with known truth: sparse concepts, some of which only one model represents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Planted:
    """Activations (N, Da), (N, Db); by side the concepts' unit directions in that model (C, D), zero where absent."""

    x_a: torch.Tensor
    x_b: torch.Tensor
    concepts: dict[str, torch.Tensor]

    def batches(self, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of so many pairs, as harvested."""
        return list(zip(self.x_a.split(rows), self.x_b.split(rows), strict=True))


def plant(
    rows: int,
    *,
    concepts: int = 24,
    exclusive: int = 3,
    widths: tuple[int, int] = (16, 20),
    active: float = 2.0,
    offset: float = 0.5,
    seed: int = 0,
) -> Planted:
    """Each of the concepts is active in a pair with probability active / concepts and strength 0.5 to 1.5. The first
    `exclusive` are A's alone, the last B's. A mean `offset` and different units of the two models make it less tidy."""
    generator = torch.Generator().manual_seed(seed)
    active_NC = torch.rand(rows, concepts, generator=generator) < active / concepts
    strength_NC = (0.5 + torch.rand(rows, concepts, generator=generator)) * active_NC
    x, made = [], {}
    for side, width, hidden in zip("ab", widths, (slice(concepts - exclusive, None), slice(0, exclusive)), strict=True):
        directions = torch.randn(concepts, width, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        directions[hidden] = 0
        noise = 0.01 * torch.randn(rows, width, generator=generator)
        shift = offset * torch.randn(width, generator=generator)
        x.append(strength_NC @ directions + noise + shift)
        made[side] = directions
    return Planted(3.0 * x[0], 0.2 * x[1], made)


def rotated_pair(width: int, **values: Any) -> Planted:
    """Two models with the same concepts and nothing else: B's activations are A's, rotated and in another unit."""
    one = plant(exclusive=0, widths=(width, width), offset=0, **values)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(5))).Q
    directions = one.concepts["a"]
    return Planted(one.x_a, one.x_a @ rotation / 15, {"a": directions, "b": directions @ rotation})


def recovered(directions_CD: torch.Tensor, decoder_FD: torch.Tensor) -> torch.Tensor:
    """Mask (C,): concepts to which some decoder row has a cosine above 0.8 (paper 4.2)."""
    decoder_FD = decoder_FD / decoder_FD.norm(dim=1, keepdim=True)
    return (directions_CD @ decoder_FD.T).max(dim=1).values > 0.8
