"""What a training step asks of a device: waits and operations, counted on the double.

`python -m tests.device.steps` prints them for the usual recipes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import torch

from modeldiff.crosscoder.fast import sparse
from modeldiff.crosscoder.fast.sparse import Bags
from modeldiff.crosscoder.training.trainer import Trainer
from tests.crosscoder.made import make_trainer, planted_batches
from tests.device.double import DeviceTensor, Double, double

WIDTHS = (64, 80)
# So many scores that no matrix of them is made (fast/topk.py), as in real trainings.
SIZES: dict[str, Any] = {"features": 1024, "exclusive": 0.05, "k": 16, "steps": 1000}
ROWS, WARM = 512, 6
RECIPES: dict[str, dict[str, Any]] = {
    "dfc, bfloat16": {"precision": "bfloat16", "dead_tokens": 2 * ROWS},
    "dfc, bfloat16, without auxiliary loss": {"precision": "bfloat16", "auxk_alpha": 0.0},
    "dfc, float32": {"dead_tokens": 2 * ROWS},
    "dfc, float32, without auxiliary loss": {"auxk_alpha": 0.0},
    "standard, bfloat16": {"precision": "bfloat16", "architecture": "standard", "dead_tokens": 2 * ROWS},
    "standard, bfloat16, without auxiliary loss": {
        "precision": "bfloat16", "architecture": "standard", "auxk_alpha": 0.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class StepCounts:
    """Means over some steps that are not logged, data on the device; by name."""

    waits: dict[str, float]
    operations: dict[str, float]

    def __str__(self) -> str:
        return f"{sum(self.waits.values()):.1f} waits, {sum(self.operations.values()):.1f} operations"


def trainer_on(device: str, *, precision: str = "float32", log_every: int = 10**9, **values: Any) -> Trainer:
    """A fresh trainer of settings `values`, the same on every device; it logs its first step at least."""
    recipe = {"log_every": log_every} | {name: values.pop(name) for name in ("audit_steps",) if name in values}
    on_cpu = make_trainer(widths=WIDTHS, recipe=recipe, **{**SIZES, **values})
    crosscoder = on_cpu.crosscoder.to(device)
    crosscoder.matmul_dtype = getattr(torch, precision)
    return Trainer(crosscoder, on_cpu.recipe, callback=on_cpu.callback)


def train_some(trainer: Trainer, steps: int) -> Iterator[None]:
    """Train on the same batches on every device, a step at a time."""
    device = trainer.crosscoder.b_enc.device
    for x_a, x_b in [(a.to(device), b.to(device)) for a, b in planted_batches(steps, ROWS, WIDTHS)]:
        trainer.update(x_a, x_b)
        yield


class Kernels:
    """Stands for triton_bags.py on the double: each call is one operation."""

    def __init__(self, gpu: Double) -> None:
        self._gpu = gpu

    def bag_sum(
        self, rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor, out_GD: torch.Tensor, some: slice
    ) -> torch.Tensor:
        self._gpu.operations.append("bag_sum")
        rows, index_K, bag_K, weight_K, out = (
            cast(DeviceTensor, one).held for one in (rows_ND, bags.index_K, bags.bag_K, weight_K, out_GD)
        )
        inside_K = (index_K >= 0) & (index_K < len(rows)) & (bag_K >= some.start) & (bag_K < some.stop)
        taken_KD = rows[index_K[inside_K]] * weight_K[inside_K, None]
        out.zero_().index_add_(0, bag_K[inside_K] - some.start, taken_KD)
        return out_GD

    def bag_dot(
        self, left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags, some: slice, dot_K: torch.Tensor
    ) -> torch.Tensor:
        self._gpu.operations.append("bag_dot")
        left, rows, index_K, bag_K, dot = (
            cast(DeviceTensor, one).held for one in (left_GD, rows_ND, bags.index_K, bags.bag_K, dot_K)
        )
        inside_K = (bag_K >= some.start) & (bag_K < some.stop)
        dot[inside_K] += (left[bag_K[inside_K] - some.start] * rows[index_K[inside_K]]).sum(dim=1)
        return dot_K


def step_counts(steps: int = 6, **values: Any) -> StepCounts:
    """Waits (with the line that waits) and operations of one training step, after some to warm up."""
    with double() as gpu, mock.patch.object(sparse, "_kernels", return_value=Kernels(gpu)):
        training = train_some(trainer_on("cuda", **values), WARM + steps)
        for _ in range(WARM):
            next(training)
        before = gpu.counted()
        for _ in training:
            pass
        waits, operations = (now - then for now, then in zip(gpu.counted(), before, strict=True))
    return StepCounts(*({name: count / steps for name, count in one.items()} for one in (waits, operations)))


def main() -> None:
    for name, values in RECIPES.items():
        counts = step_counts(**values)
        print(f"{name}: {counts}")  # noqa: T201
        print("   ", Counter(counts.waits).most_common())  # noqa: T201


if __name__ == "__main__":
    main()
