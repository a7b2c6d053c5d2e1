"""How fast a training step is, and of what: beside the device's own limits and the dense formula.

Legend: B pairs, F features, K active entries, D width of one model.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.profiler import ProfilerActivity, profile

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.sparse import OneProcess, SparseStep
from modeldiff.crosscoder.fast.topk import Scores
from modeldiff.crosscoder.model import Both, encode_into
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Recipe, Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.sides import SIDES
from tests.benchmarks.gpu.harness import Bench, Row
from tests.benchmarks.start import Sizes
from tests.crosscoder.dense import DenseStep

# Of the paper's size, on one H100: what the project wants.
STEP_MS, STEP_GB = 60, 70
_DECODER_NORM, _POSITIVE, _NOISE = 0.4, 0.055, 0.2
_BATCHES = 4
_CALLS = {
    "launches of kernels": ("cudaLaunchKernel", "cuLaunchKernel"),
    "waits of the host": ("cudaStreamSynchronize",),
    "copies": ("cudaMemcpyAsync",),
}


def ceilings(bench: Bench) -> None:
    """What the device gives: all else is held against these two."""
    size, rows = bench.sizes.copied, bench.sizes.squared
    one = torch.empty(size, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(one)
    bench.part("copy (bytes read and written)", lambda: other.copy_(one), gigabytes=2 * size / 1e9)
    a, b = (bench.normal(rows, rows, seed=seed).bfloat16() for seed in (1, 2))
    bench.part(f"product of {rows} x {rows}", lambda: a @ b, "bfloat16", teraflop=2 * rows**3 / 1e12)


def step(bench: Bench) -> None:
    """Whole steps at the paper's size: time, memory, what the profiler says; and the dense formula's."""
    size, precision = bench.sizes.paper, "bfloat16"
    crosscoder, recipe, batches = started(bench, size)
    trainer = Trainer(crosscoder, recipe, warn=False)
    bench.speed("parameters", crosscoder.config.parameters / 1e6, "million")
    begun = time.perf_counter()
    first = steps(bench, trainer, batches, 12)
    bench.speed("the first steps, with what they compile", time.perf_counter() - begun, "s", precision)
    ours = statistics.median(steps(bench, trainer, batches, 20)[1])
    bench.found["pairs/s"] = 1000 * size.batch / ours
    bench.speed("a step", ours, "ms", precision, most=STEP_MS, note=str(size))
    bench.speed("... pairs", bench.found["pairs/s"], "/s", precision)
    bench.speed("... memory at the most", bench.peak_gb, "GB", precision, most=STEP_GB)
    with bench.guarded("profile"):
        _profile(bench, trainer, batches)
    with bench.guarded("a quarter of the features dead"):
        bench.free()
        trainer.since_active_F[::4] = 1 << 40
        dead = steps(bench, trainer, batches, 1)[1][0]
        bench.speed("a step with a quarter of the features dead", dead, "ms", precision)
        bench.speed("... memory at the most", bench.peak_gb, "GB", precision, most=STEP_GB)
    del trainer, crosscoder
    bench.free()
    crosscoder, recipe, batches = started(bench, size)
    trainer = Trainer(crosscoder, recipe, sparse=Dense(crosscoder), warn=False)
    try:
        dense_first = steps(bench, trainer, batches, 2)
        dense = statistics.median(steps(bench, trainer, batches, 5)[1])
    except torch.OutOfMemoryError:
        bench.add(Row(bench.phase, "the dense formula", None, note="out of memory"))
        return
    bench.speed("a step of the dense formula, by autograd", dense, "ms", precision, note="its selection is ours")
    bench.speed("... memory at the most", bench.peak_gb, "GB", precision)
    bench.speed("a step of the dense formula against ours", dense / ours, "x", precision, least=1)
    bench.right("loss of the first step against the dense formula's", abs(first[0] / dense_first[0] - 1), 1e-2, precision)


def parts(bench: Bench) -> None:
    """What a step at the paper's size is made of, one by one."""
    size = bench.sizes.paper
    crosscoder, recipe, batches = started(bench, size)
    sparse, count, F, D, B = SparseStep(crosscoder, OneProcess()), recipe.k * size.batch, size.features, size.width, size.batch
    x = crosscoder.normalise(*batches[0])
    done = sparse.forward(*x, count)
    bench.part("of ours: forward (casts, product, selection, decode)", lambda: sparse.forward(*x, count), "bfloat16")
    bench.part("of ours: decode", lambda: sparse.decode(done.entries, done.f_K), "float32")
    bench.part("of ours: backward (gradients of code and weights)", lambda: sparse.backward(x, done, x), "float32")
    grads = [one.grad for one in crosscoder.parameters() if one.grad is not None]
    moved = 4 * sum(one.numel() for one in grads) / 1e9
    norm = get_total_norm(grads)
    bench.part("torch's: norm of the gradient", lambda: get_total_norm(grads), "float32", gigabytes=moved)
    bench.part(
        "torch's: clipping", lambda: clip_grads_with_norm_(crosscoder.parameters(), 1e9, norm), "float32",
        gigabytes=2 * moved,
    )  # fmt: skip
    with bench.guarded("torch's: fused Adam"):
        adam = torch.optim.Adam(crosscoder.parameters(), lr=1e-9, fused=bench.device.type == "cuda")
        bench.part("torch's: Adam", adam.step, "float32", gigabytes=7 * moved)
        del adam
    master_FD = crosscoder.w_enc_a.detach()
    bench.part("one encoder in bfloat16", master_FD.bfloat16, gigabytes=6 * master_FD.numel() / 1e9)
    del crosscoder, sparse, done, grads, master_FD
    bench.free()
    halves, w_FD = [one.bfloat16() for one in x], [bench.normal(F, D, seed=seed).bfloat16() for seed in (3, 4)]
    out_BF = torch.empty(B, F, dtype=torch.bfloat16, device=bench.device)
    for title, alone in (
        ("as the share asks", round(size.exclusive * F)),
        ("rounded to 64", round(size.exclusive * F) // 64 * 64),
        ("without a partition", 0),
    ):
        w_a, w_b = (one[: F - alone] for one in w_FD)
        bench.part(
            f"encoder's product, first shared column {alone} ({title})",
            lambda w_a=w_a, w_b=w_b: encode_into(out_BF, *halves, w_a, w_b, share=1.0),
            "bfloat16",
            teraflop=2 * B * 2 * (F - alone) * D / 1e12,
        )
    bench.part("its result in float32", out_BF.float, gigabytes=6 * out_BF.numel() / 1e9)
    scores = Scores(out_BF.float(), torch.zeros(F, device=bench.device))
    bench.part("selection", lambda: scores.topk(count), "float32")


def small(bench: Bench) -> None:
    """Steps at a small model's size, where launches and waits rule."""
    size = bench.sizes.small
    for title, precision, dense in (
        ("a step", "bfloat16", False), ("a step", "float32", False), ("a step of the dense formula", "bfloat16", True),
    ):  # fmt: skip
        crosscoder, recipe, batches = started(bench, size, precision)
        trainer = Trainer(crosscoder, recipe, sparse=Dense(crosscoder) if dense else None, warn=False)
        steps(bench, trainer, batches, 15)
        took = statistics.median(steps(bench, trainer, batches, 60)[1])
        bench.speed(title, took, "ms", precision, note=str(size))


class Dense(DenseStep):
    """The dense formula with autograd; products in the crosscoder's precision."""

    def forward(self, *batch: Any) -> Any:
        crosscoder = self.crosscoder
        with torch.autocast(crosscoder.b_enc.device.type, torch.bfloat16, crosscoder.matmul_dtype == torch.bfloat16):
            return super().forward(*batch)


def steps(bench: Bench, trainer: Trainer, batches: list[Both], count: int) -> tuple[float, list[float]]:
    """(the loss that was logged, or no number; milliseconds of each step)."""
    took, loss = [], math.nan
    for number in range(2 if bench.dry else count):
        bench.wait()
        start = time.perf_counter()
        line = trainer.update(*batches[number % len(batches)])
        bench.wait()
        took.append(1000 * (time.perf_counter() - start))
        loss = loss if line is None else float(line["reconstruction"])
    return loss, took


@torch.no_grad()
def started(
    bench: Bench, size: Sizes, precision: str = "bfloat16", count: int = _BATCHES
) -> tuple[Crosscoder, Recipe, list[Both]]:
    """A crosscoder like one late in a training, and batches for it in bfloat16: see tests/benchmarks/start.py, which
    makes on the CPU what takes a minute there at the paper's size. The same call gives the same numbers. The first step
    alone is logged; one pair in a hundred is an outlier."""
    settings = TrainSettings(
        features=size.features, k=size.k, k_start=size.k, anneal_steps=0, batch=size.batch, steps=1_000_000, warmup=0,
        exclusive=size.exclusive, decay="none",
    )  # fmt: skip
    recipe = make_recipe(settings, widths=(size.width, size.width), pairs=10**9)
    recipe = replace(recipe, threshold_start=0, log_every=1 << 40)
    measured = {side: Measured(torch.zeros(size.width), math.sqrt(size.width)) for side in SIDES}
    with bench.device:
        crosscoder = Crosscoder(initial_config(settings, recipe, measured))
    crosscoder.matmul_dtype = getattr(torch, precision)
    random = bench.generator(0)
    odds_F = torch.randn(size.features, generator=random, device=bench.device).exp()
    rows = count * size.batch
    chosen_Bk = odds_F.multinomial(rows * size.k, replacement=True, generator=random).view(rows, size.k)
    value_Bk = 1 + torch.randn(rows, size.k, generator=random, device=bench.device).abs()
    x = []
    for side in SIDES:
        decoder_FD, seen = crosscoder.decoder(side), crosscoder.sees(side)
        decoder_FD.normal_(generator=random)
        decoder_FD *= _DECODER_NORM / decoder_FD.norm(dim=1, keepdim=True)
        crosscoder.encoder(side).copy_(decoder_FD)
        inside_Bk = (chosen_Bk >= seen.start) & (chosen_Bk < seen.stop)
        row_Bk = (chosen_Bk - seen.start).clamp(0, len(decoder_FD) - 1)
        x_BD = torch.nn.functional.embedding_bag(row_Bk, decoder_FD, per_sample_weights=value_Bk * inside_Bk, mode="sum")
        noise_BD = torch.randn(x_BD.shape, generator=random, device=bench.device)
        x_BD += _NOISE * float(x_BD.square().mean().sqrt()) * noise_BD
        x_BD[::100] *= 8
        x.append(x_BD.bfloat16())
    batches: list[Both] = list(zip(x[0].split(size.batch), x[1].split(size.batch), strict=True))
    crosscoder.b_enc.fill_(-_quantile(crosscoder, batches[0], 1 - _POSITIVE))
    return crosscoder, recipe, batches


def let_through(crosscoder: Crosscoder, batch: Both, k: float) -> None:
    """Set the threshold above which about k features a pair are active at inference."""
    crosscoder.set_threshold(max(1e-3, _quantile(crosscoder, batch, 1 - k / crosscoder.n_features)))


def _quantile(crosscoder: Crosscoder, batch: Both, share: float) -> float:
    """Of a sample of the pre-activations of a batch; torch takes no more than so many."""
    pre_N = crosscoder.pre_activations(*crosscoder.normalise(*batch)).flatten()
    return float(pre_N[:: max(1, len(pre_N) // 1_000_000)].quantile(share))


def _profile(bench: Bench, trainer: Trainer, batches: list[Both]) -> None:
    """Where the device's time goes, how much of it there is, and how often the host launches and waits; per step."""
    count = 2 if bench.dry else 3
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        steps(bench, trainer, batches, count)
    found = profiler.key_averages()
    for title, names in _CALLS.items():
        bench.speed(title, sum(one.count for one in found if one.key.startswith(names)) / count, "a step")
    # What ran there; what asked for it on the CPU is listed with the same time once more.
    there = {one.key: one.self_device_time_total / 1000 / count for one in found if one.device_type == DeviceType.CUDA}
    bench.speed("device busy", sum(there.values()), "ms")
    for name in sorted(there, key=there.__getitem__, reverse=True)[:14]:
        bench.speed(f"... {name[:58]}", there[name], "ms")
