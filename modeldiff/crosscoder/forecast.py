"""What a training run would take, said before anything of its size is allocated: memory, disk, time; and what to change
where it does not fit. For `modeldiff train --plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modeldiff.console import say
from modeldiff.crosscoder.budget import Job, Memory, disk, memory
from modeldiff.crosscoder.probe import PROBE_SECONDS, Size, probe
from modeldiff.crosscoder.room import free_memory, free_on
from modeldiff.crosscoder.training.recipe import Recipe
from modeldiff.workspace.files import free_bytes, human_bytes

# For what allocators cannot use again, and for what is small and not counted.
_MARGIN = 1.1
# The probe takes at most this share of the memory that is free.
_PROBE_SHARE = 1 / 8
# Proposals: features in steps of this many, batches and buffers not below, processes not above.
_FEATURE_STEP, _LEAST_BATCH, _LEAST_BUFFER, _MOST_PROCESSES = 1024, 256, 16 << 20, 4096


@dataclass(frozen=True)
class _Limit:
    """Something of which there is `free`, and `needed` as a function of the job."""

    what: str
    free: int
    needed: Callable[[Job], int]
    otherwise: str

    def fits(self, job: Job) -> bool:
        return self.needed(job) <= self.free


def forecast(job: Job, device: torch.device, folder: Path, *, probe_seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """What the run would take.

    Args:
        device: that of a process; job.device is its type.
        folder: of the workspace.

    Returns:
        memory: by place ("device" and "host"; on the CPU only "host"), the bytes of a process at each moment of the
            run, `needed` (the most, and a little to spare) and `free`; `parts`, of a step; disk: `checkpoint`,
            `artifact`, `needed`, `free`; time: seconds of a step late in the run, of the whole run, and pairs per
            second; fits; problems: what does not fit and what would mend it, one line each.
    """
    planned = memory(job)
    limits = {place: _limit(place, device) for place in (["host"] if job.on_cpu else ["device", "host"])}
    limits["disk"] = _Limit(
        f"disk in {folder}",
        free_bytes(folder),
        lambda job: disk(job.config)["needed"],
        "a --workspace on a disk with more room",
    )
    room = min(limit.free for place, limit in limits.items() if place != "disk")
    say("time some steps on random data")
    pace = probe(job, device, most_bytes=int(_PROBE_SHARE * room), seconds=probe_seconds)
    problems = [_problem(job, device, limit) for limit in limits.values() if not limit.fits(job)]
    answer: dict[str, Any] = {"memory": {"parts": planned.parts}}
    for place, limit in limits.items():
        if place != "disk":
            at = planned.host if place == "host" else planned.device
            moments = {moment: at(moment) for moment in planned.moments}
            answer["memory"][place] = {**moments, "needed": limit.needed(job), "free": limit.free}
    answer["disk"] = {**disk(job.config), "free": limits["disk"].free}
    per_process = Size(job.recipe.batch, job.part.n_features, job.recipe.k / job.processes)
    mean = dataclasses.replace(per_process, k=mean_k(job.recipe) / job.processes)
    answer["time"] = {
        "step": pace.at(per_process),
        "run": job.recipe.steps * pace.at(mean),
        "pairs_per_second": job.recipe.batch / pace.at(per_process),
    }
    return {**answer, "fits": not problems, "problems": problems}


def processes_here(processes: int, device: torch.device) -> int:
    """How many of the processes are on this machine: one for each of its devices; on the CPU, where they would only
    share what one has, one."""
    return min(processes, torch.cuda.device_count()) if device.type == "cuda" else 1


def mean_k(recipe: Recipe) -> float:
    """Active features per pair, mean over all steps."""
    falling = min(recipe.anneal_steps, recipe.steps)
    last = recipe.k_at(max(0, falling - 1))
    return (falling * (recipe.k_at(0) + last) / 2 + (recipe.steps - falling) * recipe.k) / recipe.steps


def _limit(place: str, device: torch.device) -> _Limit:
    def most(of: Memory) -> int:
        return of.most_host if place == "host" else of.most_device

    def needed(job: Job) -> int:
        return int(_MARGIN * most(memory(job)))

    if place == "host":
        return _Limit("memory of this machine", free_memory(), needed, "a machine with more memory")
    return _Limit(f"memory of {device}", free_on(device), needed, "a device with more memory")


def _problem(job: Job, device: torch.device, limit: _Limit) -> str:
    """What is too little, and every change that mends it alone."""
    mending = [text for text, changed in _changes(job, device, limit) if limit.fits(changed)]
    return (
        f"{limit.what}: {human_bytes(limit.needed(job))} needed, {human_bytes(limit.free)} free; "
        f"use {', or '.join([*mending, limit.otherwise])}"
    )


def _changes(job: Job, device: torch.device, limit: _Limit) -> Iterator[tuple[str, Job]]:
    features = _most_features(job, limit)
    if features:
        yield f"--features {features} or fewer", job.with_features(features)
    batch = job.recipe.batch
    while batch >= 2 * _LEAST_BATCH:
        batch //= 2
        changed = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, batch=batch))
        if limit.fits(changed):
            yield f"--batch {batch}", changed
            break
    if not (job.recipe.audits or job.config.n_designated):
        processes = 2 * job.processes
        while processes <= min(_MOST_PROCESSES, job.config.n_features):
            changed = dataclasses.replace(job, processes=processes, local=processes_here(processes, device))
            if limit.fits(changed):
                where = "machines" if job.on_cpu else "devices"
                yield f"{processes} processes by torchrun on as many {where}", changed
                break
            processes *= 2
    if job.buffer_bytes > _LEAST_BUFFER:
        yield f"--buffer-mib {_LEAST_BUFFER >> 20}", dataclasses.replace(job, buffer_bytes=_LEAST_BUFFER)


def _most_features(job: Job, limit: _Limit) -> int:
    """Of the numbers of features that fit, the largest; 0 if none does."""
    low, high = 0, job.config.n_features // _FEATURE_STEP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if limit.fits(job.with_features(middle * _FEATURE_STEP)) else (low, middle)
    return low * _FEATURE_STEP
