"""What a training run would take, before anything of its size is allocated: memory, disk, time. For `train --plan`.

Counted is what the code keeps at the start, when each process makes its part of the initial dictionary on the CPU; in
a training step; in a checkpoint, of which each process writes its part; in the evaluation, for which the first process
gathers the weights. What torch and CUDA take is not.

Legend: B pairs, F features, D = Da + Db widths.
"""

from __future__ import annotations

import bisect
import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from modeldiff.console import say
from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.training.recipe import Recipe
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.workspace.files import free_bytes, human_bytes
from modeldiff.workspace.free import free_memory, free_on
from modeldiff.workspace.ranks import Ranks

# Share of the dictionary for which the auxiliary loss is given memory: how many will be dead nobody knows.
_DEAD_SHARE = 0.1
# For what allocators cannot use again, and for what is small and not counted.
_MARGIN = 1.1
_FLOAT, _HALF, _LONG = 4, 2, 8
# Float32 matrices (B, D) beside the pre-activations, whose memory holds all others: activations, and what the shared
# features make of them. Bytes of an active entry: row and column, order by feature, values, gradients, candidates.
_BATCH_COPIES, _ENTRY = 2, 60
# (N, F) and (N, D) matrices of the evaluation of N pairs.
_CODE_COPIES, _EVALUATION_COPIES = 2.5, 6
# Timing: so many steps, of so many operations in the encoder's product at most.
_STEPS, _OPERATIONS = 3, {"cpu": 4e10, "cuda": 1e12, "mps": 1e11}
_FEATURE_STEP, _FOREVER = 1024, 1 << 62


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides what a run takes. config: of the whole crosscoder; pairs: stored, to train on; pair_bytes: of one of
    them; block_rows: pairs that are read and evaluated at once; local: processes on one machine."""

    config: CrosscoderConfig
    recipe: Recipe
    precision: Literal["float32", "bfloat16"]
    device: torch.device
    pairs: int
    pair_bytes: int
    block_rows: int
    buffer_bytes: int
    processes: int = 1
    local: int = 1

    @property
    def part(self) -> CrosscoderConfig:
        """The crosscoder of one process: the last one's, which has the most features."""
        return Shards(Ranks(self.processes - 1, self.processes), self.config).config(self.processes - 1)

    @property
    def read_ahead(self) -> int:
        """Bytes of pairs: a process's share of all of them where they fit, and of batches on their way to another
        device."""
        ahead = 0 if self.device.type == "cpu" else 4 * self.recipe.batch * self.pair_bytes
        return (min(self.buffer_bytes, self.pairs * self.pair_bytes) + ahead) // self.processes


def forecast(job: Job, folder: Path) -> dict[str, Any]:
    """What the run would take in the `folder` of a workspace: `memory`, with the `parts` of a step of one process and,
    by place ("host", "device"), the bytes `needed`, with some to spare, and `free`; `disk`; `time`, the seconds of a
    late `step` and of the `run`; whether it `fits`; `problems`: what does not fit and what mends it, a line each."""

    def most(place: str, changed: Job) -> int:
        return int(_MARGIN * max(needed(changed, place).values()))

    memory: dict[str, Any] = {"parts": step_parts(job)}
    problems: list[str] = []
    for place in ["host"] if job.device.type == "cpu" else ["device", "host"]:
        memory[place] = {"needed": most(place, job), "free": free_memory() if place == "host" else free_on(job.device)}
        where = f"memory of {'this machine' if place == 'host' else job.device}"
        problems += _problem(job, where, partial(most, place), memory[place]["free"])
    on_disk = {**disk(job.config), "free": free_bytes(folder)}
    problems += _problem(job, f"disk in {folder}", lambda changed: disk(changed.config)["needed"], on_disk["free"])
    say("time some steps on random data")
    step = seconds_of_a_step(job)
    timed = {"step": step, "run": step * job.recipe.steps, "pairs_per_second": job.recipe.batch / step}
    return {"memory": memory, "disk": on_disk, "time": timed, "fits": not problems, "problems": problems}


def step_parts(job: Job) -> dict[str, int]:
    """Bytes of a training step by what they are for."""
    part, recipe, B, on_cpu = job.part, job.recipe, job.recipe.batch, job.device.type == "cpu"
    F, D = part.n_features, part.width_a + part.width_b
    weights = _FLOAT * part.parameters
    half = _HALF if job.precision == "bfloat16" else 0
    entries = round(max(recipe.k, recipe.k_at(0)) * B * min(1, 2.5 / job.processes))
    batch = _BATCH_COPIES * _FLOAT * B * D + _ENTRY * entries + B * job.pair_bytes
    batch += B * job.pair_bytes if job.processes > 1 else 0  # what the processes gave each other, before it is in order
    batch += half * (part.n_a * part.width_a + part.n_b * part.width_b)  # the encoders once more
    if not on_cpu:  # the next batch, and masks of the selection, which the CPU makes piece by piece
        batch += B * job.pair_bytes + B * F
    parts = {"weights": weights, "gradients": weights, "moments": 2 * weights}
    parts |= {"pre_activations": B * (_FLOAT * max(F, 2 * D) + half * F), "batch": batch}
    if recipe.auxk_alpha:
        parts["dead_features"] = round(_DEAD_SHARE * _FLOAT * (1.5 * part.parameters + 4 * B * F))
    if recipe.audit_steps:
        pairs = recipe.audit_batches * B
        parts["audits"] = _FLOAT * (2 * pairs * D + pairs * (part.n_a_only + part.n_b_only) + F * (D + 2 * B))
    if on_cpu:
        parts["buffer"] = job.read_ahead
    return parts


def needed(job: Job, place: str) -> dict[str, int]:
    """Bytes at each moment: of the device that needs most, or ("host") of the machine with the first process, all of
    its processes together."""
    config, parts, on_cpu, several = job.config, step_parts(job), job.device.type == "cpu", job.processes > 1
    whole, part, step = _FLOAT * config.parameters, parts["weights"], sum(parts.values())
    lasting = sum(parts[name] for name in ("weights", "gradients", "moments", "pre_activations"))
    numbers = _CODE_COPIES * config.n_features + _EVALUATION_COPIES * (config.width_a + config.width_b)
    evaluation = part + (whole if several else 0) + job.block_rows * _FLOAT * round(numbers)
    if place == "device":
        return {"start": part, "step": step, "checkpoint": lasting, "evaluation": evaluation}
    written = lasting if on_cpu else disk(job.part)["checkpoint"]  # from another device it is copied
    return {
        "start": job.local * part,
        "step": job.local * (step if on_cpu else job.read_ahead),
        "checkpoint": job.local * (job.read_ahead + written),
        "evaluation": job.local * part + evaluation - part if on_cpu else whole,
    }


def disk(config: CrosscoderConfig) -> dict[str, int]:
    """Bytes of a checkpoint, of the artifact, and `needed`: a checkpoint is written before the old one goes."""
    weights = _FLOAT * config.parameters
    checkpoint = 3 * weights + _LONG * config.n_features  # weights, moments, a counter for each feature
    return {"checkpoint": checkpoint, "artifact": weights, "needed": 2 * checkpoint}


def scaled(config: CrosscoderConfig, features: int) -> CrosscoderConfig:
    """A config with another number of features in the same partitions."""
    share = features / config.n_features
    a, b = round(share * config.n_a_only), round(share * config.n_b_only)
    designated = max(1, round(share * config.n_designated)) if config.n_designated else 0
    k = min(config.k, features)
    return replace(config, n_a_only=a, n_shared=features - a - b, n_b_only=b, n_designated=designated, k=k)


def _problem(job: Job, where: str, needs: Callable[[Job], int], free: int) -> list[str]:
    """One line if it does not fit, with the largest dictionary that does."""
    if needs(job) <= free:
        return []
    sizes = range(_FEATURE_STEP, job.config.n_features, _FEATURE_STEP)
    fitting = bisect.bisect_right(sizes, free, key=lambda n: needs(replace(job, config=scaled(job.config, n))))
    mending = [f"--features {sizes[fitting - 1]} or fewer"] if fitting else []
    mending += ["a smaller --batch or --buffer-mib", "more processes by torchrun"] if "memory" in where else []
    mending.append("a larger machine or disk")
    return [f"{where}: {human_bytes(needs(job))} needed, {human_bytes(free)} free; use {', or '.join(mending)}"]


def seconds_of_a_step(job: Job) -> float:
    """The fastest of some steps of one process on random data, in proportion to the features where the dictionary is
    too large for that: a step is mostly its products. What several processes exchange comes on top."""
    whole = job.part
    affordable = int(_OPERATIONS[job.device.type] / (2 * job.recipe.batch * (whole.width_a + whole.width_b)))
    config = scaled(whole, min(whole.n_features, max(affordable, _FEATURE_STEP, whole.k)))
    recipe = replace(
        job.recipe, k=config.k, k_start=config.k, anneal_steps=0, steps=_FOREVER, lr=1e-9, warmup=0, decay="none",
        log_every=_FOREVER, audit_steps=(), dead_pairs=_FOREVER, threshold_start=_FOREVER,
    )  # fmt: skip
    zeros = {"a": Measured(torch.zeros(config.width_a), 1.0), "b": Measured(torch.zeros(config.width_b), 1.0)}
    crosscoder = Crosscoder.initialised(config, zeros, seed=0).to(job.device)
    crosscoder.matmul_dtype = torch.bfloat16 if job.precision == "bfloat16" else torch.float32
    trainer = Trainer(crosscoder, recipe, warn=False)
    x = [torch.randn(recipe.batch, len(one.mean_D), device=job.device) for one in zeros.values()]

    def step() -> None:
        trainer.update(*x)
        float(crosscoder.b_dec_a.detach()[0])  # waits for the device

    _first, *seconds = timeit.repeat(step, number=1, repeat=1 + _STEPS)
    return min(seconds) * whole.n_features / config.n_features
