"""What "random" is, where something is held against a random direction.

Legend: N directions, D width.
"""

from __future__ import annotations

import torch


def random_directions(count: int, like_D: torch.Tensor, seed: int) -> torch.Tensor:
    """(N, D) random directions of the norm of `like_D`; the same for the same seed, however many are asked for."""
    generator = torch.Generator().manual_seed(seed)
    # One after another: a single larger draw would give other numbers.
    drawn = [torch.randn(len(like_D), generator=generator) for _ in range(count)]
    drawn_ND = torch.stack(drawn) if drawn else torch.empty(0, len(like_D))
    return drawn_ND / drawn_ND.norm(dim=1, keepdim=True) * like_D.norm()
