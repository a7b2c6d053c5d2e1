"""How long a training step will take, from a few seconds of real steps on smaller dictionaries.

At given widths a step costs

    t = c0 + c1 F + c2 B + c3 B F + c4 B k

with c1 for Adam, gradients and norms, c2 for what is done to a batch, c3 for the encoder's product and the selection,
c4 for everything at the kept entries. Steps are timed at five sizes, as large as the time allows, and the five
coefficients, none of which can be negative, are fitted to them. The sizes grow until a step takes some hundredths of a
second; where the run's own batch is not too large for that, it is used as it is, and F alone is extrapolated.

Legend: B pairs, F features, D width of one model.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from modeldiff.crosscoder.budget import Job, scaled
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.training.recipe import Recipe
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.workspace.bits import ENCODINGS

PROBE_SECONDS = 2.0
_LEAST_BATCH, _LEAST_FEATURES = 64, 1024
# Sizes grow by this factor, and no more once a step takes so many seconds.
_GROWTH, _ENOUGH = 4, 0.03
# Rounds over the five sizes that are always made.
_LEAST_ROUNDS = 2
# Parameters, gradients and two moments.
_COPIES = 4
_FOREVER = 1 << 62


@dataclass(frozen=True)
class Size:
    """Of one step."""

    batch: int
    features: int
    k: float

    @property
    def terms(self) -> list[float]:
        """What the coefficients are multiplied by."""
        return [1.0, self.features, self.batch, self.batch * self.features, self.batch * self.k]


@dataclass(frozen=True)
class Pace:
    """Seconds of a step as a function of its size.

    Attributes:
        coefficients: c0 to c4.
        measured: the sizes they come from, with the median seconds of each.
    """

    coefficients: tuple[float, ...]
    measured: tuple[tuple[Size, float], ...]

    def at(self, size: Size) -> float:
        """Seconds of a step."""
        return sum(c * term for c, term in zip(self.coefficients, size.terms, strict=True))


def fitted(measured: dict[Size, float]) -> Pace:
    """The coefficients, none negative, with the least squares of the relative errors."""
    seconds = np.array(list(measured.values()))
    terms = np.array([size.terms for size in measured]) / seconds[:, None]
    scale = terms.max(axis=0)
    coefficients, _ = nnls(terms / scale, np.ones(len(seconds)))
    return Pace(tuple((coefficients / scale).tolist()), tuple(measured.items()))


def probe(
    job: Job,
    device: torch.device,
    *,
    most_bytes: int,
    seconds: float = PROBE_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Time steps like those of one of the run's processes.

    Args:
        most_bytes: what the dictionaries of the probe may take.
        seconds: when to stop, apart from the least that is needed.
        clock: counts the seconds that are fitted.
    """
    steps = _Steps(job, device, clock)
    end = time.perf_counter() + seconds
    sizes = _sizes(job, steps, most_bytes)
    times: dict[Size, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        steps(size)  # memory of a new size is touched for the first time
    rounds = 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        for size, taken in times.items():
            taken.append(steps(size))
        rounds += 1
    return fitted({size: statistics.median(taken) for size, taken in times.items()})


def _sizes(job: Job, steps: _Steps, most_bytes: int) -> list[Size]:
    """Five sizes, or fewer where they are the same."""
    part = job.part
    k = max(1, round(job.recipe.k / job.processes))  # of a pair's entries, a process's even share
    room = int(most_bytes / (_COPIES * 4 * part.parameters / part.n_features * (1 + 1 / _GROWTH)))
    batch, B = job.recipe.batch, min(job.recipe.batch, _LEAST_BATCH)
    least = min(part.n_features, max(_LEAST_FEATURES, 4 * k))
    most, F = min(part.n_features, max(least, room)), least
    steps(Size(B, F, k))
    while batch > B and steps(Size(B, F, k)) < _ENOUGH:
        B = min(batch, _GROWTH * B)
    while most > _GROWTH * F and steps(Size(B, F, k)) < _ENOUGH:
        F *= _GROWTH
    few, many = F, min(most, _GROWTH * F)
    if few == many:
        few = max(k, many // 2)
    half = max(1, B // 2)
    sizes = [Size(B, few, k), Size(B, many, k), Size(half, few, k), Size(half, many, k), Size(B, many, max(1, k // 2))]
    return list(dict.fromkeys(sizes))


class _Steps:
    """Times single steps; keeps a trainer for every number of features."""

    def __init__(self, job: Job, device: torch.device, clock: Callable[[], float]) -> None:
        self._job, self._device, self._clock = job, device, clock
        self._trainers: dict[int, Trainer] = {}
        config = job.config
        random = torch.Generator().manual_seed(0)
        self._x = [
            (torch.randn(job.recipe.batch, width, generator=random) / scale * math.sqrt(norm)).to(
                device, ENCODINGS[encoding][0]
            )
            for width, scale, encoding, norm in (
                (config.width_a, config.scale_a, job.encodings[0], _mean_width(job) / config.width_a),
                (config.width_b, config.scale_b, job.encodings[1], _mean_width(job) / config.width_b),
            )
        ]

    def __call__(self, size: Size) -> float:
        trainer = self._trainers.get(size.features)
        if trainer is None:
            trainer = self._trainers[size.features] = self._made(size.features)
        trainer.recipe = _steady(self._job.recipe, size)
        x_a, x_b = (x[: size.batch] for x in self._x)
        self._wait()
        start = self._clock()
        trainer.update(x_a, x_b)
        self._wait()
        return self._clock() - start

    def _made(self, features: int) -> Trainer:
        config = scaled(self._job.part, features)
        zeros = torch.zeros(config.width_a), torch.zeros(config.width_b)
        crosscoder = Crosscoder.initialised(config, *zeros, seed=0).to(self._device)
        crosscoder.matmul_dtype = torch.bfloat16 if self._job.precision == "bfloat16" else torch.float32
        trainer = Trainer(crosscoder, self._job.recipe, warn=False)
        trainer.step = 1  # the first step is logged, which costs more
        return trainer

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


def _mean_width(job: Job) -> float:
    return (job.config.width_a + job.config.width_b) / 2


def _steady(recipe: Recipe, size: Size) -> Recipe:
    """A recipe of steps that are all alike: none is logged or audited, no feature dies, and hardly anything is
    learned."""
    return dataclasses.replace(
        recipe,
        k=int(size.k),
        k_start=int(size.k),
        anneal_steps=0,
        steps=_FOREVER,
        lr=1e-9,
        warmup=0,
        decay="none",
        log_every=_FOREVER,
        audits=0,
        dead_pairs=_FOREVER,
        threshold_start=_FOREVER,
    )
