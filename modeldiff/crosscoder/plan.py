"""What a training run would take, before anything of its size is allocated: memory, disk, time. For `train --plan`.

Counted is what the code keeps at four moments: the start, when the whole initial dictionary is made on the CPU; a
training step; a checkpoint, which the first process gathers on the CPU; the evaluation at the end. What the
interpreter, torch and CUDA themselves take is not. Time is that of real steps on random data.

Legend: B pairs, F features, D = Da + Db widths.
"""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from modeldiff.sides import SIDES
from modeldiff.workspace.bits import ENCODINGS, bytes_per_value
from modeldiff.workspace.files import free_bytes, human_bytes
from modeldiff.workspace.free import free_memory, free_on
from modeldiff.workspace.ranks import Ranks

# Share of the dictionary for which the auxiliary loss is given memory: how many will be dead nobody knows.
_DEAD_SHARE = 0.1
# For what allocators cannot use again, and for what is small and not counted.
_MARGIN = 1.1
_FLOAT, _HALF, _LONG = 4, 2, 8
# Float32 matrices (B, D) at once: activations, reconstructions, errors, their gradients, and one more. Bytes of an
# active entry: its row and column, the order by feature, values and gradients, and of the candidates.
_BATCH_COPIES, _ENTRY = 5, 60
# (N, F) and (N, D) matrices of the evaluation of N pairs.
_CODE_COPIES, _EVALUATION_COPIES = 2.5, 6
# Timing: so many steps, of so many operations in the encoder's product at most.
_STEPS, _OPERATIONS = 3, {"cpu": 4e10, "cuda": 1e12, "mps": 1e11}
_FEATURE_STEP = 1024
_FOREVER = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides what a run takes."""

    config: CrosscoderConfig
    """Of the whole crosscoder."""
    recipe: Recipe
    precision: Literal["float32", "bfloat16"]
    device: torch.device
    encodings: tuple[str, str]
    """Of the stored activations of A and B."""
    pairs: int
    """Stored pairs to train on."""
    block_rows: int
    """Pairs that are read and evaluated at once."""
    buffer_bytes: int
    processes: int = 1
    """That share the features."""
    local: int = 1
    """Of them, on one machine."""

    @property
    def part(self) -> CrosscoderConfig:
        """The crosscoder of one process: the last one's, which has the most features."""
        return Shards(Ranks(self.processes - 1, self.processes), self.config).config(self.processes - 1)

    @property
    def row_bytes(self) -> int:
        widths = (self.config.width_a, self.config.width_b)
        return sum(w * bytes_per_value(encoding) for w, encoding in zip(widths, self.encodings, strict=True))

    @property
    def read_ahead(self) -> int:
        """Bytes of pairs: all of them where they fit; on the way to another device, batches as well."""
        ahead = 0 if self.device.type == "cpu" else 4 * self.recipe.batch * self.row_bytes
        return min(self.buffer_bytes, self.pairs * self.row_bytes) + ahead


def forecast(job: Job, folder: Path) -> dict[str, Any]:
    """What the run would take in the `folder` of a workspace.

    Returns:
        memory: `parts`, bytes of a step of one process by what they are for; by place ("device", "host"; on the CPU
        only "host") the most bytes `needed`, with a little to spare, and `free`. disk: `checkpoint`, `artifact`,
        `needed`, `free`. time: seconds of a `step` late in the run, of the `run`, `pairs_per_second`. fits. problems:
        what does not fit and what would mend it, one line each.
    """
    problems: list[str] = []
    memory: dict[str, Any] = {"parts": step_parts(job)}
    for place in ["host"] if job.device.type == "cpu" else ["device", "host"]:

        def most(changed: Job, place: str = place) -> int:
            return int(_MARGIN * max(needed(changed, place).values()))

        memory[place] = {"needed": most(job), "free": free_memory() if place == "host" else free_on(job.device)}
        where = "memory of " + ("this machine" if place == "host" else str(job.device))
        problems += _problem(job, where, most, memory[place]["free"])
    on_disk = {**disk(job.config), "free": free_bytes(folder)}
    problems += _problem(job, f"disk in {folder}", lambda changed: disk(changed.config)["needed"], on_disk["free"])
    say("time some steps on random data")
    step = seconds_of_a_step(job)
    timed = {"step": step, "run": step * job.recipe.steps, "pairs_per_second": job.recipe.batch / step}
    return {"memory": memory, "disk": on_disk, "time": timed, "fits": not problems, "problems": problems}


def step_parts(job: Job) -> dict[str, int]:
    """Bytes of a training step by what they are for."""
    part, recipe, B = job.part, job.recipe, job.recipe.batch
    F, D = part.n_features, part.width_a + part.width_b
    weights = _FLOAT * part.parameters
    half = job.precision == "bfloat16"
    parts = {"weights": weights, "gradients": weights, "moments": 2 * weights}
    parts["pre_activations"] = B * F * (_HALF + _FLOAT if half else _FLOAT)
    entries = round(max(recipe.k, recipe.k_at(0)) * B * min(1, 2.5 / job.processes))
    parts["batch"] = _BATCH_COPIES * _FLOAT * B * D + _ENTRY * entries + B * job.row_bytes
    if half:  # the encoders' copy
        parts["batch"] += _HALF * (part.n_a * part.width_a + part.n_b * part.width_b)
    if job.device.type != "cpu":  # the next batch, and masks of the selection, which the CPU makes piece by piece
        parts["batch"] += B * job.row_bytes + B * F
    if recipe.auxk_alpha:
        parts["dead_features"] = round(_DEAD_SHARE * _FLOAT * (1.5 * part.parameters + 4 * B * F))
    if recipe.audit_steps:
        pairs = recipe.audit_batches * B
        numbers = 2 * pairs * D + pairs * (part.n_a_only + part.n_b_only) + F * (D + 2 * B)
        parts["audits"] = _FLOAT * numbers
    if job.device.type == "cpu":
        parts["buffer"] = job.read_ahead
    return parts


def needed(job: Job, place: str) -> dict[str, int]:
    """Bytes at each moment: of the device that needs most, or ("host") of the machine with the first process, all of
    its processes together."""
    config, parts, on_cpu, several = job.config, step_parts(job), job.device.type == "cpu", job.processes > 1
    whole, part = _FLOAT * config.parameters, parts["weights"]
    lasting = sum(parts[name] for name in ("weights", "gradients", "moments", "pre_activations"))
    widths = config.width_a + config.width_b
    block = job.block_rows * _FLOAT * round(_CODE_COPIES * config.n_features + _EVALUATION_COPIES * widths)
    evaluation = part + (whole if several else 0) + block
    step = sum(parts.values())
    if place == "device":
        return {"start": part, "step": step, "checkpoint": lasting, "evaluation": evaluation}
    drawn = _FLOAT * (config.n_a * config.width_a + config.n_b * config.width_b)
    gathered = disk(config)["checkpoint"] if several or not on_cpu else 0
    return {
        "start": job.local * (whole + max(drawn, part if several else 0)),
        "step": job.local * (step if on_cpu else job.read_ahead),
        "checkpoint": job.local * (job.read_ahead + (lasting if on_cpu else 0)) + gathered,
        "evaluation": job.local * part + evaluation - part if on_cpu else whole,
    }


def disk(config: CrosscoderConfig) -> dict[str, int]:
    """Bytes of a checkpoint (weights, moments, a counter for each feature), of the artifact (weights), and at most: a
    new checkpoint is written before the old one goes."""
    weights = _FLOAT * config.parameters
    checkpoint = 3 * weights + _LONG * config.n_features
    return {"checkpoint": checkpoint, "artifact": weights, "needed": 2 * checkpoint}


def scaled(config: CrosscoderConfig, features: int) -> CrosscoderConfig:
    """A config with another number of features in the same partitions."""
    share = features / config.n_features
    a, b = round(share * config.n_a_only), round(share * config.n_b_only)
    designated = max(1, round(share * config.n_designated)) if config.n_designated else 0
    k = min(config.k, features)
    return dataclasses.replace(config, n_a_only=a, n_shared=features - a - b, n_b_only=b, n_designated=designated, k=k)


def _problem(job: Job, where: str, needs: Callable[[Job], int], free: int) -> list[str]:
    """One line if it does not fit, with the largest dictionary that does."""
    if needs(job) <= free:
        return []
    sizes = range(_FEATURE_STEP, job.config.n_features, _FEATURE_STEP)
    fitting = bisect.bisect_right(
        sizes, free, key=lambda features: needs(dataclasses.replace(job, config=scaled(job.config, features)))
    )
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
    recipe = dataclasses.replace(
        job.recipe, k=config.k, k_start=config.k, anneal_steps=0, steps=_FOREVER, lr=1e-9, warmup=0, decay="none",
        log_every=_FOREVER, audit_steps=(), dead_pairs=_FOREVER, threshold_start=_FOREVER,
    )  # fmt: skip
    widths = (config.width_a, config.width_b)
    zeros = {side: Measured(torch.zeros(width), 1.0) for side, width in zip(SIDES, widths, strict=True)}
    crosscoder = Crosscoder.initialised(config, zeros, seed=0).to(job.device)
    crosscoder.matmul_dtype = torch.bfloat16 if job.precision == "bfloat16" else torch.float32
    trainer = Trainer(crosscoder, recipe, warn=False)
    trainer.step = 1  # the first step is logged, which costs more
    generator = torch.Generator().manual_seed(0)
    x = [
        torch.randn(recipe.batch, width, generator=generator).to(job.device, ENCODINGS[encoding][0])
        for width, encoding in zip(widths, job.encodings, strict=True)
    ]
    found = []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        trainer.update(*x)
        float(crosscoder.b_dec_a.detach()[0])  # waits for the device
        found.append(time.perf_counter() - start)
    return min(found[1:]) * whole.n_features / config.n_features
