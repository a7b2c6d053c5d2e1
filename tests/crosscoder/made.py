"""Small crosscoders with random weights, biases included."""

from __future__ import annotations

from typing import Any

import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig


def random_crosscoder(seed: int = 0, **config: Any) -> Crosscoder:
    """A crosscoder whose every weight and bias is random; fields of the config may be given."""
    values = {"width_a": 6, "width_b": 9, "n_a_only": 2, "n_shared": 5, "n_b_only": 3, "k": 3}
    crosscoder = Crosscoder(CrosscoderConfig(**{**values, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return crosscoder
