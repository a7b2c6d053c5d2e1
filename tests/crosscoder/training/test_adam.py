"""Adam with clipped gradients: scaled before it, or by itself while it reads them."""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder.training.adam import Adam
from tests.crosscoder.made import random_crosscoder


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_gradients_scaled_by_adam_move_weights_as_gradients_scaled_before_it(size: float) -> None:
    found = []
    for scales in (False, True):
        crosscoder = random_crosscoder()
        optimizer = Adam(crosscoder, clip=size / 3)
        optimizer.scales = scales
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            gradients = [torch.randn(one.shape, generator=generator) for one in crosscoder.parameters()]
            whole = torch.cat([one.flatten() for one in gradients]).norm()
            for one, gradient in zip(crosscoder.parameters(), gradients, strict=True):
                one.grad = gradient * (size / whole)
            optimizer.step(0.1, torch.tensor(size))
        norm = torch.cat([one.grad.flatten() for one in crosscoder.parameters()]).norm().item()
        assert norm == pytest.approx(size / 3, rel=1e-2), "the gradient that Adam took"
        found.append([*crosscoder.parameters(), *(state["exp_avg_sq"] for state in optimizer.state.values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
