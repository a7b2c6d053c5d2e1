"""Training with gradients at the active entries only is training: the dense formula gives the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

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


def lines_of(**values: Any) -> Iterator[tuple[tuple[Trainer, Trainer], dict[str, Any], dict[str, Any]]]:
    """The sparse trainer and the dense one, and what they log, step by step."""
    given = {"features": 64, "k": 4, "batch": BATCH, "steps": 200, **values}
    sparse, dense = (make_trainer(widths=(16, 16), dense=dense, **given) for dense in (False, True))
    for batch in planted_batches(200, BATCH, (16, 16)):
        yield (sparse, dense), sparse.update(*batch), dense.update(*batch)


@pytest.mark.parametrize("name", VARIANTS)
def test_three_steps_have_the_same_gradients(name: str) -> None:
    values = VARIANTS[name] | {"dead_tokens": 0}  # every feature that is silent in the batch counts as dead
    for (sparse, dense), found, expected in itertools.islice(lines_of(**values), 3):
        for one, other in zip(sparse.crosscoder.parameters(), dense.crosscoder.parameters(), strict=True):
            assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm()
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert found["slots"] == expected["slots"]
        assert found["fve_shared"] == pytest.approx(expected["fve_shared"], rel=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_hundred_steps_have_the_same_losses(name: str) -> None:
    for _, found, expected in lines_of(**VARIANTS[name]):
        # Rounding differs; a swapped entry at the threshold moves a loss by about one part in a thousand here.
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3), found["step"]
