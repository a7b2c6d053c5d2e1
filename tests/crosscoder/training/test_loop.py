"""Checkpoints: a fresh trainer gets sizes, weights and moments; those of other runs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.training.checkpoint import read_checkpoint, write_checkpoint
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import DamagedError
from tests.crosscoder.made import make_trainer
from tests.crosscoder.made import planted_batches as batches

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def tensors(trainer: Trainer) -> list[torch.Tensor]:
    """Weights, moments and counters."""
    parameters = list(trainer.crosscoder.parameters())
    states = [trainer.optimizer.state[one] for one in parameters]
    moments = [value for state in states for value in state.values()]
    return [*parameters, *moments, trainer.since_active_F]


def assert_continues(trainer: Trainer, other: Trainer, path: Path, data: Batches) -> None:
    """The other trainer, from a checkpoint, has what the first one has, and makes the same steps."""
    log = '{"step": 0, "source": "é"}\n'
    write_checkpoint(path, trainer, log)
    assert read_checkpoint(path, other) == log
    assert other.crosscoder.config == trainer.crosscoder.config
    for batch in data:
        assert other.update(*batch) == trainer.update(*batch)
        for found, expected in zip(tensors(other), tensors(trainer), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("sizes", [(4, 32, 4), (1, 36, 3), (0, 40, 0)])
def test_a_fresh_trainer_continues_from_rearranged_partitions(sizes: tuple[int, int, int], tmp_path: Path) -> None:
    trainer = make_trainer(steps=20)
    *first, second = batches(4)
    for x_a, x_b in first:
        trainer.update(x_a, x_b)
    a, shared, b = sizes
    order = [*range(a), *range(4, 36), *[FRESH] * (shared - 32), *range(40 - b, 40)]
    rearrange(
        trainer.crosscoder, trainer.optimizer, {"A": order[:a], "shared": order[a : -b or 40], "B": order[40 - b :]}
    )
    trainer.update(*first[0])
    other = make_trainer(steps=20)
    assert_continues(trainer, other, tmp_path / "c.json", [second] * 2)
    assert other.step == 6
    assert other.crosscoder.sizes == {"A": a, "shared": shared, "B": b}


@pytest.mark.parametrize("architecture", ["dsf-vectors", "dsf-norms"])
def test_a_fresh_trainer_continues_a_dsf_crosscoder_with_both_thresholds(architecture: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"architecture": architecture, "designated": 0.15, "k": 3, "steps": 30}
    trainer, other = (make_trainer(widths=(16, 16), recipe={"threshold_start": 2}, **given) for _ in range(2))
    data = batches(12, widths=(16, 16))
    for x in data[:7]:
        trainer.update(*x)
    assert_continues(trainer, other, tmp_path / "c.json", data[7:])
    assert other.threshold.value == trainer.threshold.value > 0
    assert other.threshold_designated.value == trainer.threshold_designated.value > 0
    assert trainer.threshold.value != trainer.threshold_designated.value


def test_a_checkpoint_that_is_truncated_or_of_another_dictionary_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.update(*batches(1)[0])
    path = tmp_path / "c.json"
    write_checkpoint(path, trainer, "")
    for other in (make_trainer(features=50), make_trainer(features=30, exclusive=0.2)):
        message = r"partitions of [35]0 features .* found \[4, 32, 4\]; .*workspace clean"
        with pytest.raises(DamagedError, match=message):
            read_checkpoint(path, other)
    (part,) = tmp_path.glob("c-*.safetensors")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"truncated.*modeldiff workspace clean"):
        read_checkpoint(path, trainer)
