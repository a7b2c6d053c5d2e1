"""One cell of the benchmark: a world, an architecture and a seed -> a trained dictionary, measured against the truth.

The dictionary is that of `modeldiff train`: same class, same recipe, same trainer.

Legend: B pairs, F features, G features judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.crosscoder.audits.judging import judge, sample
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.quality import Quality, by_partition
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Recipe, Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.sides import SIDES
from modeldiff.toy.recovery import Dictionary, dictionary_of, recovery
from modeldiff.toy.settings import Architecture
from modeldiff.toy.stitch import UNLIMITED_PAIRS, Stitch, residual_recipe, stitch_r2
from modeldiff.toy.world import ConceptStream, World, WorldSpec

# Audits of the architectures with partitions: `dfc` is the paper's, `dfc-audited` that of `modeldiff train --audits 8`.
_AUDITS: dict[Architecture, int] = {"dfc": 0, "dfc-audited": 8, "stitch-residual": 0}
# A verdict needs a reference: shared features read from one model. Residuals have none, and designated features are
# selected apart from the others. Both are reported as they stand.
_WITH_VERDICT = ("standard", "dfc", "dfc-audited")
# Parts of a seed's stream: training, normalisation and stitch, evaluation, evidence about the exclusive features.
TRAIN, CALIBRATE, EVALUATE, JUDGE = 0, 1, 2, 3
_CHUNK = 2048
_CALIBRATION_PAIRS, _CALIBRATION_PAIRS_PER_WIDTH = 16_384, 64
# Fitted on n times as many pairs as there are dimensions, a map adds 1/n to the variance it leaves unexplained.
_STITCH_PAIRS_PER_WIDTH = 128
_EVALUATION_PAIRS = 32_768
# Points of the curves of recall over the training, and batches without activity after which a feature is dead there.
_SNAPSHOTS, _ALIVE_BATCHES = 12, 50


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """What a cell is computed from. The seed is that of the world, of its pairs and of the initial weights."""

    world: WorldSpec
    seed: int
    architecture: Architecture
    train: dict[str, Any]
    """Settings of `modeldiff train` other than its defaults."""
    device: str = "cpu"

    @property
    def widths(self) -> tuple[int, int]:
        """(Da, Db)."""
        return self.world.width_a, self.world.width_b

    @property
    def cost(self) -> int:
        """How long the training takes, in proportion."""
        train = self.train
        return int(train["steps"] * train["batch"] * (train["features"] + sum(self.widths)))

    @property
    def settings(self) -> TrainSettings:
        """The complete settings of the training. Raises InputError for one that makes no sense."""
        name, audits = self.architecture, _AUDITS.get(self.architecture)
        kind = {"architecture": name} if audits is None else {"architecture": "dfc", "audits": audits}
        return TrainSettings(**{"seed": self.seed, **kind, **self.train})

    @property
    def recipe(self) -> Recipe:
        """The training in numbers. Raises InputError for settings that do not fit together."""
        if self.architecture == "stitch-residual":
            return residual_recipe(self.settings, self.widths)
        return make_recipe(self.settings, widths=self.widths, pairs=UNLIMITED_PAIRS)

    def check(self) -> None:
        measured = {side: Measured(torch.zeros(width), 1.0) for side, width in zip(SIDES, self.widths, strict=True)}
        initial_config(self.settings, self.recipe, measured)

    def stream(self, world: World, part: int, batch: int = _CHUNK) -> ConceptStream:
        return ConceptStream(world, batch=batch, seed=self.seed, part=part, device=self.device)


@dataclass(frozen=True)
class Trained:
    cell: CellSpec
    world: World
    crosscoder: Crosscoder
    stitch: Stitch | None
    """The dictionary reads what this leaves over of the activations; None: the activations."""

    def pairs(self, part: int, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """At least `count` pairs (x_a, x_b) of a part of the stream, batch by batch, as the crosscoder reads them."""
        stream = self.cell.stream(self.world, part)
        for _ in range(-(-count // _CHUNK)):
            x = stream.next()
            yield self.crosscoder.normalise(*(self.stitch.residuals(*x) if self.stitch else x))


def run_cell(cell: CellSpec) -> dict[str, Any]:
    """Train and measure; JSON data: `recall`, `exclusive` (see recovery.py), `fve`, `fve_shared`, `gain_exclusive`,
    `l0`, `dead`, `verdict`, `limit`, `curve`, `stitch`. Deterministic on the CPU."""
    recipe = cell.recipe
    curve: list[dict[str, Any]] = []
    every = max(1, recipe.steps // _SNAPSHOTS)

    def after_step(trainer: Trainer, world: World) -> None:
        if trainer.step % every == 0:
            alive_F = trainer.since_active_F < _ALIVE_BATCHES * recipe.batch
            recall = recovery(world, dictionary_of(trainer.crosscoder, alive_F)).recall(world)
            curve.append({"step": trainer.step, "pairs": trainer.step * recipe.batch, **recall})

    trained = train_cell(cell, after_step)
    own = cell.world.n_exclusive
    return {
        **_measured(trained),
        # Most of the exclusive concepts that the slots given at the start allow to recover.
        "limit": None if not own else min(1.0, recipe.n_a_only / own) if recipe.n_a_only else 1.0,
        "curve": curve,
        "stitch": stitch_r2(*_calibration(cell, trained.world, _CALIBRATION_PAIRS_PER_WIDTH)),
    }


def train_cell(cell: CellSpec, after_step: Callable[[Trainer, World], None] | None = None) -> Trained:
    """As `modeldiff train`, with scales and means from a sample in place of the store's."""
    world, settings, recipe = World.drawn(cell.world, cell.seed), cell.settings, cell.recipe
    of_residuals = cell.architecture == "stitch-residual"
    x = _calibration(cell, world, _STITCH_PAIRS_PER_WIDTH if of_residuals else _CALIBRATION_PAIRS_PER_WIDTH)
    stitch = Stitch.fitted(*x) if of_residuals else None
    x = stitch.residuals(*x) if stitch else x
    measured = {side: Measured.of(x_ND) for side, x_ND in zip(SIDES, x, strict=True)}
    crosscoder = Crosscoder.initialised(initial_config(settings, recipe, measured), measured, seed=cell.seed)
    trainer = Trainer(crosscoder.to(cell.device), recipe, warn=False)
    stream = cell.stream(world, TRAIN, recipe.batch)
    while trainer.step < recipe.steps:
        x = stream.next()
        trainer.update(*(stitch.residuals(*x) if stitch else x))
        if after_step:
            after_step(trainer, world)
    trainer.crosscoder.set_threshold(trainer.threshold.value, trainer.threshold_designated.value)
    return Trained(cell, world, trainer.crosscoder, stitch)


def _calibration(cell: CellSpec, world: World, pairs_per_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = max(_CALIBRATION_PAIRS, pairs_per_width * max(cell.widths))
    return cell.stream(world, CALIBRATE).pairs(count)


@torch.no_grad()
def _measured(trained: Trained) -> dict[str, Any]:
    world, crosscoder = trained.world, trained.crosscoder
    quality = Quality(crosscoder)
    fires_F = torch.zeros(crosscoder.n_features, dtype=torch.long, device=trained.cell.device)
    for x in trained.pairs(EVALUATE, _EVALUATION_PAIRS):
        f_BF = crosscoder.encode(*x, raw=False)
        quality.add_code(x, f_BF)
        fires_F += (f_BF > 0).sum(dim=0)
    dictionary = dictionary_of(crosscoder, fires_F > 0)
    found = recovery(world, dictionary)
    return {
        "recall": found.recall(world),
        "exclusive": found.exclusive,
        **quality.figures(),
        "l0": by_partition(crosscoder, fires_F / _EVALUATION_PAIRS),
        "dead": {name: int(n) for name, n in by_partition(crosscoder, fires_F == 0).items()},
        "verdict": _verdict(trained, dictionary),
    }


def _verdict(trained: Trained, dictionary: Dictionary) -> dict[str, dict[str, int]]:
    """How many exclusive features the evidence still calls exclusive, and what those recover."""
    called_F = dictionary.alive_F
    if trained.cell.architecture in _WITH_VERDICT:
        crosscoder = trained.crosscoder

        def by_threshold(pre_BF: torch.Tensor) -> tuple[torch.Tensor, float]:
            return crosscoder.active(pre_BF), crosscoder.config.threshold

        sampled = sample(crosscoder, list(trained.pairs(JUDGE, _EVALUATION_PAIRS)), by_threshold)
        called_F = torch.zeros_like(called_F)
        for side in SIDES:
            evidence = judge(crosscoder, sampled, side)
            called_F[sampled.judged[side][evidence.exclusive_G].cpu()] = True
    counts = recovery(trained.world, dataclasses.replace(dictionary, alive_F=called_F)).exclusive
    return {
        side: {"called": one["features"], **{name: one[name] for name in ("true", "shared", "nothing")}}
        for side, one in counts.items()
    }
