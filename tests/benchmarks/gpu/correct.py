"""Is the arithmetic of a training step right on the device? Kernels against float64, steps against the CPU.

Legend: K entries, G bags, N rows, D width.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch

from modeldiff.crosscoder.fast import sparse
from modeldiff.crosscoder.fast.sparse import Bags, bag_dot, bag_sum
from modeldiff.crosscoder.training.trainer import Trainer
from tests.benchmarks.gpu.harness import Bench
from tests.crosscoder.fast.formulas import made_case
from tests.crosscoder.made import make_trainer
from tests.crosscoder.planted import plant

# Relative to the size of the answer: float32 rounds to 6e-8, and sums of some hundred terms lose a digit or two.
KERNEL = 1e-5
# Relative to the CPU's in float32: of the loss of the first step, which no earlier rounding has touched (products in
# tf32 would show); of the losses of 30 steps; and of the weights after them, as a share of how far they went. Changing
# the activations by 1e-7 of their size, on the CPU, moves the last two by 2e-7 and 5e-7; by 1e-6, which makes one
# active entry another, by 2e-3 and 0.03; products in bfloat16 do by 5e-3 and 0.11.
FIRST = {"float32": 1e-5, "bfloat16": 1e-2}
LOSS = {"float32": 5e-3, "bfloat16": 2e-2}
WEIGHTS = {"float32": 0.08, "bfloat16": 0.5}
STEPS, BATCH, WIDTHS = 30, 256, (64, 48)
# Without features to revive, and with them.
RUNS: dict[str, dict[str, Any]] = {"": {}, ", features revived": {"dead_tokens": 600, "auxk_alpha": 0.1}}

CASES = {
    "uneven and empty bags": made_case([0, 3, 1, 40, 0, 2, 17, 0], rows=50, width=96),
    "one huge bag": made_case([300], rows=20, width=70),
    "wider than a tile": made_case([2, 5, 1, 3], rows=9, width=1030),
    "rows in bfloat16": made_case([4, 0, 20, 1], rows=15, width=256, dtypes=(torch.float32, torch.bfloat16)),
}


def kernels(bench: Bench) -> None:
    """The Triton kernels against float64: entries that begin at odd places of longer lists (another alignment is
    another compilation), results over what was no number, and rows behind 2^31 values."""
    if find_spec("triton") is None:
        bench.skip("kernels", "Triton is not installed")
        return
    from modeldiff.crosscoder.fast import triton_bags

    # As on a GPU, also where Triton's interpreter stands for one.
    with patch.object(sparse, "_kernels", lambda _device: triton_bags):
        _bags(bench)
        if bench.sizes.far_rows:
            _far_bags(bench)


def _bags(bench: Bench) -> None:
    for title, (left_GD, rows_ND, weight_K, bags) in CASES.items():
        terms_KD = rows_ND.double()[bags.index_K]
        right_GD = torch.zeros(left_GD.shape, dtype=torch.float64)
        right_GD.index_add_(0, bags.bag_K, weight_K.double()[:, None] * terms_KD)
        right_K = (left_GD.double()[bags.bag_K] * terms_KD).sum(1)
        left_GD, rows_ND, start_G1 = (one.to(bench.device) for one in (left_GD, rows_ND, bags.start_G1))
        for shift, alignment in enumerate(("even", "odd")):
            index_K, there_K = (
                torch.cat([one.new_zeros(shift), one]).to(bench.device)[shift:] for one in (bags.index_K, weight_K)
            )
            there, out_GD = Bags(index_K, start_G1), torch.full(right_GD.shape, torch.nan, device=bench.device)
            what = f"{title}, {alignment} alignment"
            bench.right(f"sums, {what}", apart(bag_sum(rows_ND, there, there_K, out_GD), right_GD), most=KERNEL)
            bench.right(f"products, {what}", apart(bag_dot(left_GD, rows_ND, there), right_K), most=KERNEL)


def _far_bags(bench: Bench) -> None:
    rows_ND = torch.empty(bench.sizes.far_rows, 4096, dtype=torch.bfloat16, device=bench.device)
    last_K = torch.arange(len(rows_ND) - 100, len(rows_ND), device=bench.device)
    rows_ND[last_K] = right_GD = bench.normal(100, 4096, seed=9).bfloat16()
    far = Bags(last_K, torch.arange(101, device=bench.device))
    out_GD = bag_sum(rows_ND, far, torch.ones(100, device=bench.device))
    bench.right("sums of rows behind 2^31 values", apart(out_GD, right_GD), most=0)
    right_K = right_GD.double().square().sum(1)
    bench.right("products of rows behind 2^31 values", apart(bag_dot(out_GD, rows_ND, far), right_K), most=KERNEL)


def steps(bench: Bench) -> None:
    """Thirty steps in every precision against the same ones on the CPU in float32."""
    for title, values in RUNS.items():
        start, end, right = _trained(torch.device("cpu"), "float32", values)
        for precision in ("float32", "bfloat16"):
            _, there, found = _trained(bench.device, precision, values)
            for name in ("reconstruction", "auxk") if values else ("reconstruction",):
                pairs = [(float(a[name] or 0), float(b[name] or 0)) for a, b in zip(found, right, strict=True)]
                errors = [abs(a - b) / max(abs(b), 1e-9) for a, b in pairs]
                if name == "reconstruction":
                    bench.right(f"{name} of the first step{title}", errors[0], precision, most=FIRST[precision])
                bench.right(f"{name} of {STEPS} steps{title}", max(errors), precision, most=LOSS[precision])
            moved = float((there - end).norm() / (end - start).norm())
            bench.right(f"weights after {STEPS} steps{title}", moved, precision, most=WEIGHTS[precision])
    # What makes the comparison one.
    bench.right("the CPU's last loss, of its first", right[-1]["reconstruction"] / right[0]["reconstruction"], most=0.9)
    revived = sum(line["auxk"] is not None for line in right)
    bench.right("the CPU's steps with features to revive", revived, least=STEPS / 3)


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    """Norm of the difference, relative to that of what is right; computed on the CPU."""
    right = right.double().cpu()
    return float((found.double().cpu() - right).norm() / right.norm())


def _trained(
    device: torch.device, precision: str, values: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, Any]]]:
    """(all weights at the start, at the end, the steps' lines), on the CPU in float64."""
    made = make_trainer(widths=WIDTHS, features=512, k=8, batch=BATCH, steps=1000, warmup=0, lr=1e-3, **values)
    crosscoder = made.crosscoder.to(device)
    crosscoder.matmul_dtype = getattr(torch, precision)
    trainer = Trainer(crosscoder, replace(made.recipe, threshold_start=0), warn=False)

    def weights() -> torch.Tensor:
        return torch.cat([one.detach().double().cpu().flatten() for one in crosscoder.parameters()])

    start = weights()
    batches = plant(STEPS * BATCH, concepts=200, active=6, widths=WIDTHS).batches(BATCH)
    lines = [trainer.update(*(x.to(device) for x in batch)) for batch in batches]
    return start, weights(), [line for line in lines if line is not None]
