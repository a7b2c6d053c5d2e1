"""Training with gradients at the active entries only is training: the dense formula gives the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeldiff.crosscoder.training.trainer import Trainer
from tests.crosscoder.made import make_trainer, planted_batches

BATCH = 128
VARIANTS: dict[str, dict[str, Any]] = {
    "dfc": {},
    "standard": {"architecture": "standard"},
    "mean of the encoders": {"combine": "mean"},
    "scores with decoder norms": {"selection": "l2"},
    "unsquared error": {"loss": "norm"},
    "designated features": {"architecture": "dsf-vectors"},
    "audits": {"audits": 3, "audit_pairs": 512, "exclusive": 0.2},
}


def pair_of(**values: Any) -> tuple[Trainer, Trainer]:
    """The sparse one and the dense one."""
    given = {"features": 64, "k": 4, "batch": BATCH, "steps": 200, **values}
    sparse, dense = (make_trainer(widths=(16, 16), dense=dense, **given) for dense in (False, True))
    return sparse, dense


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return planted_batches(count, BATCH, (16, 16))


@pytest.mark.parametrize("name", VARIANTS)
def test_one_step_has_the_same_gradients(name: str) -> None:
    values = VARIANTS[name] | {"dead_tokens": 0}  # every feature that is silent in the batch counts as dead
    sparse, dense = pair_of(**values)
    for x_a, x_b in batches(3):
        lines = sparse.update(x_a, x_b), dense.update(x_a, x_b)
        for one, other in zip(sparse.crosscoder.parameters(), dense.crosscoder.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm()
        assert lines[0] is not None
        assert lines[1] is not None
        assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-6)
        assert lines[0]["slots"] == lines[1]["slots"]
        assert lines[0]["fve_shared"] == pytest.approx(lines[1]["fve_shared"], rel=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_hundred_steps_have_the_same_losses(name: str) -> None:
    sparse, dense = pair_of(**VARIANTS[name])
    for x_a, x_b in batches(200):
        found, expected = sparse.update(x_a, x_b), dense.update(x_a, x_b)
        assert found is not None
        assert expected is not None
        # Rounding differs; a swapped entry at the threshold moves a loss by about one part in a thousand here.
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3), found["step"]
