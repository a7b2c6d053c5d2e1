"""A step on a GPU: the weights are those of the CPU, and the program waits for the device four times at most."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modeldiff.crosscoder.fast import sparse
from modeldiff.crosscoder.fast.sparse import Bags
from modeldiff.crosscoder.training.trainer import Trainer
from tests.crosscoder.made import make_trainer, planted_batches

double = pytest.importorskip("tests.device.double").double
STEPS, ROWS = 6, 128


def bag_sum(rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor, out_GD: torch.Tensor, some: slice) -> Any:
    bag_K, inside_K = bags.bag_K - some.start, (bags.index_K >= 0) & (bags.index_K < len(rows_ND))
    inside_K &= (bag_K >= 0) & (bag_K < len(out_GD))
    taken_KD = rows_ND.index_select(0, bags.index_K.clamp(0, len(rows_ND) - 1)) * weight_K[:, None]
    taken_KD = torch.where(inside_K[:, None], taken_KD, 0)
    return out_GD.zero_().index_add_(0, bag_K.clamp(0, len(out_GD) - 1), taken_KD)


def bag_dot(left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags, some: slice, dot_K: torch.Tensor) -> Any:
    bag_K = bags.bag_K - some.start
    left_KD = left_GD.index_select(0, bag_K.clamp(0, len(left_GD) - 1))
    more_K = (left_KD * rows_ND.index_select(0, bags.index_K)).sum(dim=1)
    return dot_K.add_(torch.where((bag_K >= 0) & (bag_K < len(left_GD)), more_K, 0))


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's kernels do, in operations of torch."""
    answers = SimpleNamespace(bag_sum=bag_sum, bag_dot=bag_dot)
    monkeypatch.setattr(sparse, "_kernels", lambda device: answers if device.type == "cuda" else None)


@pytest.mark.parametrize("dead_tokens", [None, 2 * ROWS])
@pytest.mark.parametrize("outlier_factor", [0.0, 1.2])
@pytest.mark.parametrize("values", [{}, {"architecture": "standard"}, {"selection": "l2", "loss": "norm"}])
def test_a_step_waits_four_times_and_gives_the_weights_of_the_cpu(
    values: dict[str, Any], outlier_factor: float, dead_tokens: int | None
) -> None:
    values = {"features": 400, "k": 8, "clip": 0.1, "steps": 100, "outlier_factor": outlier_factor, **values}
    values |= {"auxk_alpha": 0.0} if dead_tokens is None else {"dead_tokens": dead_tokens}
    on_cpu = make_trainer(recipe={"log_every": STEPS}, **values)
    there = make_trainer(recipe={"log_every": STEPS}, **values).crosscoder
    batches = planted_batches(STEPS, ROWS)
    with double() as gpu:
        on_device = Trainer(there.to("cuda"), on_cpu.recipe)
        for step, (x_a, x_b) in enumerate(batches):
            on_cpu.update(x_a, x_b)
            x = x_a.to("cuda"), x_b.to("cuda")
            gpu.waits.clear()
            on_device.update(*x)
            assert step == 0 or len(gpu.waits) <= 4, gpu.waits
        found = [value.cpu() for value in on_device.crosscoder.parameters()]
    for value, expected in zip(found, on_cpu.crosscoder.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert on_device.threshold.value == pytest.approx(on_cpu.threshold.value)
    assert on_device.left_out == on_cpu.left_out
