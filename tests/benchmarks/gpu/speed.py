"""How fast a training step is, and of what: beside the device's own limits and the dense formula.

Legend: B pairs, F features, k active ones of a pair, D width of one model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn.functional import embedding_bag
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
from tests.benchmarks.gpu.harness import Bench
from tests.benchmarks.start import Sizes
from tests.crosscoder.dense import DenseStep

# Of a step at the paper's size: what the project wants, on one H100.
STEP_MS, STEP_GB = 60, 70
_CALLS = {
    "launches of kernels": ("cudaLaunchKernel", "cuLaunchKernel"),
    "waits of the host": ("cudaStreamSynchronize",),
    "copies": ("cudaMemcpyAsync",),
}
_DECODER_NORM, _POSITIVE, _NOISE = 0.4, 0.055, 0.2
HALF = "bfloat16"


class Dense(DenseStep):
    """The dense formula with autograd, its products in the crosscoder's precision."""

    def forward(self, *batch: Any) -> Any:
        half = self.crosscoder.matmul_dtype == torch.bfloat16
        with torch.autocast(batch[0].device.type, torch.bfloat16, half):
            return super().forward(*batch)


def ceilings(bench: Bench) -> None:
    """What the device gives: all else is held against these two."""
    rows = bench.sizes.squared
    one = torch.empty(32 * rows**2, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(one)
    bench.part("copy (bytes read and written)", lambda: other.copy_(one), gigabytes=2 * len(one) / 1e9)
    a, b = (bench.normal(rows, rows, seed=seed).bfloat16() for seed in (1, 2))
    bench.part(f"product of {rows} x {rows}", lambda: a @ b, HALF, teraflop=2 * rows**3 / 1e12)


def step(bench: Bench) -> None:
    """Whole steps at the paper's size: time, memory, what the profiler says; and the dense formula's."""
    loss, ours = _whole(bench, "a step")
    bench.free()
    try:
        dense_loss, dense = _whole(bench, "a step of the dense formula, by autograd", dense=True)
    except torch.OutOfMemoryError:
        bench.skip("the dense formula", "out of memory")
        return
    bench.speed("... against ours (the selection is the same)", dense / ours, "x", HALF, least=1)
    bench.right("the first loss, against the dense formula's", abs(loss / dense_loss - 1), HALF, most=1e-2)


def _whole(bench: Bench, title: str, *, dense: bool = False) -> tuple[float, float]:
    """(loss of the first step, milliseconds of a later one)."""
    size = bench.sizes.paper
    trainer, update = running(bench, size, HALF, dense=dense)
    first = update()
    took = median(bench.timed(update, 20, warm_up=10))
    bench.speed(title, took, "ms", HALF, note=str(size), most=math.inf if dense else STEP_MS)
    bench.memory(title, HALF, most=math.inf if dense else STEP_GB)
    if not dense:
        bench.found["pairs/s"] = 1000 * size.batch / took
        bench.speed("... pairs", bench.found["pairs/s"], "/s", HALF)
        with bench.guarded("profile"):
            _profile(bench, update)
        with bench.guarded("a quarter of the features dead"):
            bench.free()
            trainer.since_active_F[::4] = 1 << 40
            bench.speed("a step with a quarter of the features dead", bench.timed(update, 1)[0], "ms", HALF)
            bench.memory("a quarter dead", HALF, most=STEP_GB)
    return float(first["reconstruction"]), took


def parts(bench: Bench) -> None:
    """What a step at the paper's size is made of, one by one."""
    _own_parts(bench)
    bench.free()
    size = bench.sizes.paper
    B, F, D = size.batch, size.features, size.width
    x_a, x_b, w_a, w_b = (bench.normal(*shape, seed=7).bfloat16() for shape in [(B, D)] * 2 + [(F, D)] * 2)
    out_BF, exclusive = torch.empty(B, F, dtype=torch.bfloat16, device=bench.device), round(size.exclusive * F)
    for alone in (exclusive, exclusive // 64 * 64, 0):
        product = partial(encode_into, out_BF, x_a, x_b, w_a[: F - alone], w_b[: F - alone], share=1.0)
        flop = 4 * B * (F - alone) * D
        bench.part(f"encoder's product, first shared column {alone}", product, HALF, teraflop=flop / 1e12)
    bench.part("its result in float32", out_BF.float, gigabytes=6 * out_BF.numel() / 1e9)
    scores = Scores(out_BF.float(), torch.zeros(F, device=bench.device))
    bench.part("selection", lambda: scores.topk(size.k * B), "float32")


def _own_parts(bench: Bench) -> None:
    """Those that need the weights; beside ours what torch's own functions take."""
    size = bench.sizes.paper
    crosscoder, _, batches = started(bench, size, count=1)
    x, sparse = crosscoder.normalise(*batches[0]), SparseStep(crosscoder, OneProcess())
    done = sparse.forward(*x, size.k * size.batch)
    bench.part("forward (casts, product, selection, decode)", lambda: sparse.forward(*x, size.k * size.batch), HALF)
    bench.part("... its decode", lambda: sparse.decode(done.entries, done.f_K), "float32")
    bench.part("backward (gradients of code and weights)", lambda: sparse.backward(x, done, x), "float32")
    weights = list(crosscoder.parameters())
    grads = [one.grad for one in weights if one.grad is not None]
    once, norm = 4 * crosscoder.config.parameters / 1e9, get_total_norm(grads)
    bench.part("torch's norm of the gradient", lambda: get_total_norm(grads), gigabytes=once)
    bench.part("torch's clipping", lambda: clip_grads_with_norm_(weights, 1e9, norm), gigabytes=2 * once)
    adam = torch.optim.Adam(weights, lr=1e-9, fused=True)
    bench.part("torch's fused Adam", adam.step, gigabytes=7 * once)
    bench.part("one encoder in bfloat16", weights[0].bfloat16, gigabytes=6 * weights[0].numel() / 1e9)


def small(bench: Bench) -> None:
    """Steps of a small model, ours and the dense formula's."""
    for precision, dense in ((HALF, False), ("float32", False), (HALF, True)):
        _, update = running(bench, bench.sizes.small, precision, dense=dense)
        title = "a step of the dense formula" if dense else "a step"
        took = median(bench.timed(update, 60, warm_up=15))
        bench.speed(title, took, "ms", precision, note=str(bench.sizes.small))


def running(bench: Bench, size: Sizes, precision: str, *, dense: bool) -> tuple[Trainer, Callable[[], Any]]:
    """(a trainer, what makes one step and gives its line)."""
    crosscoder, recipe, batches = started(bench, size, precision)
    trainer = Trainer(crosscoder, recipe, sparse=Dense(crosscoder) if dense else None, warn=False)
    endless = cycle(batches)
    return trainer, lambda: trainer.update(*next(endless))


@torch.no_grad()
def started(bench: Bench, size: Sizes, precision: str = HALF, count: int = 4) -> tuple[Crosscoder, Recipe, list[Both]]:
    """A crosscoder like one late in a training, and batches for it in bfloat16, as tests/benchmarks/start.py makes on
    the CPU, where the paper's size takes a minute. The same call gives the same numbers. The first step alone is
    logged; one pair in a hundred is an outlier; about k features a pair are active at inference."""
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
    rows, x = count * size.batch, []
    odds_F = bench.normal(size.features, seed=0).exp()
    random = torch.Generator(bench.device).manual_seed(0)
    chosen_Bk = odds_F.multinomial(rows * size.k, replacement=True, generator=random).view(rows, size.k)
    value_Bk = 1 + bench.normal(rows, size.k, seed=1).abs()
    for seed, side in enumerate(SIDES, 2):
        decoder_FD, seen = crosscoder.decoder(side), crosscoder.sees(side)
        decoder_FD.normal_(generator=random)
        decoder_FD *= _DECODER_NORM / decoder_FD.norm(dim=1, keepdim=True)
        crosscoder.encoder(side).copy_(decoder_FD)
        own_Bk = value_Bk * ((chosen_Bk >= seen.start) & (chosen_Bk < seen.stop))
        row_Bk = (chosen_Bk - seen.start).clamp(0, len(decoder_FD) - 1)
        x_BD = embedding_bag(row_Bk, decoder_FD, per_sample_weights=own_Bk, mode="sum")
        x_BD += _NOISE * float(x_BD.square().mean().sqrt()) * bench.normal(rows, size.width, seed=seed)
        x_BD[::100] *= 8
        x.append(x_BD.bfloat16().split(size.batch))
    batches: list[Both] = list(zip(*x, strict=True))
    pre_N = crosscoder.pre_activations(*crosscoder.normalise(*batches[0])).flatten()
    some_N = pre_N[:: max(1, len(pre_N) // 1_000_000)]  # torch takes no more for a quantile
    bias = float(some_N.quantile(1 - _POSITIVE))
    crosscoder.b_enc.fill_(-bias)
    crosscoder.set_threshold(max(1e-3, float(some_N.quantile(1 - size.k / size.features)) - bias))
    return crosscoder, recipe, batches


def _profile(bench: Bench, update: Callable[[], Any], steps: int = 4) -> None:
    """Per step: how often the host launches and waits, how long the device works, and at what."""
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (bench.device.type == "cuda")]
    with profile(activities=kinds) as profiler:
        for _ in range(steps):
            update()
        bench.wait()
    found = profiler.key_averages()
    for title, names in _CALLS.items():
        bench.speed(title, sum(one.count for one in found if one.key.startswith(names)) / steps, "a step", HALF)
    # What asked for a kernel on the CPU is listed with the same time once more.
    busy = {one.key: one.self_device_time_total / 1000 for one in found if one.device_type == DeviceType.CUDA}
    bench.speed("the device works", sum(busy.values()) / steps, "ms", HALF)
    for name in sorted(busy, key=busy.__getitem__, reverse=True)[:14]:
        bench.speed(f"... {name[:58]}", busy[name] / steps, "ms")
