"""One cell of the benchmark: a world, an architecture and a seed -> a trained dictionary, measured against the truth.

The dictionary is that of `modeldiff train`: same class, same recipe, same trainer.

Legend: B, N pairs, C concepts, D width of one model, F features.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.crosscoder.audits.judging import judge, sample
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.losses import Quality, by_partition
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Recipe, Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.sides import SIDES
from modeldiff.toy.recovery import Dictionary, Recovery, dictionary_of, recovery
from modeldiff.toy.stitch import Stitch, residual_recipe, stitch_r2, train_stitch_residual
from modeldiff.toy.stream import ConceptStream
from modeldiff.toy.world import SHARED, World, WorldSpec

# `dfc` is the paper's; `dfc-audited` what `modeldiff train --audits 8` does.
_TRAIN: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "dsf-vectors": {"architecture": "dsf-vectors"},
    "dsf-norms": {"architecture": "dsf-norms"},
    "dfc": {"architecture": "dfc", "audits": 0},
    "dfc-audited": {"architecture": "dfc", "audits": 8},
    "stitch-residual": {"architecture": "dfc", "audits": 0},
}
ARCHITECTURES = tuple(_TRAIN)
# A verdict needs a reference: shared features read from one model. Residuals have none, and designated features are
# selected apart from the others. Both are reported as they stand.
WITH_VERDICT = ("standard", "dfc", "dfc-audited")
# Parts of a seed's stream: training, normalisation and stitch, evaluation, evidence about the exclusive features.
TRAIN, CALIBRATE, EVALUATE, JUDGE = 0, 1, 2, 3
_CHUNK = 2048
_CALIBRATION_PAIRS, _CALIBRATION_PAIRS_PER_WIDTH = 16_384, 64
_EVALUATION_PAIRS = 32_768
# Pairs without activity after which a feature counts as dead in a snapshot of the training.
_ALIVE_BATCHES = 50
_FREQUENCY_BINS = 5
_FREQUENCY_DRAWS = 200
_UNLIMITED = 10**12

Pairs = Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """What a cell is computed from."""

    world: WorldSpec
    seed: int
    """Of the world, of its pairs and of the initial weights."""
    architecture: str
    train: dict[str, Any]
    """Settings of `modeldiff train` other than its defaults."""
    snapshots: int = 12
    device: str = "cpu"
    """Random numbers differ between devices."""

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the result."""
        return dataclasses.asdict(self)

    @property
    def settings(self) -> TrainSettings:
        """The complete settings of the training.

        Raises:
            InputError: a setting makes no sense.
        """
        return TrainSettings(**{"seed": self.seed, **_TRAIN[self.architecture], **self.train})

    @property
    def recipe(self) -> Recipe:
        """The training in numbers.

        Raises:
            InputError: settings that do not fit together, such as a dictionary smaller than its partitions.
        """
        widths = (self.world.width_a, self.world.width_b)
        if self.architecture == "stitch-residual":
            return residual_recipe(self.settings, k=None, widths=widths)
        return make_recipe(self.settings, widths=widths, pairs=_UNLIMITED)


def validate(cell: CellSpec) -> None:
    """Raise InputError for a cell that could not run."""
    widths = (cell.world.width_a, cell.world.width_b)
    measured = {side: Measured(torch.zeros(width), 1.0) for side, width in zip(SIDES, widths, strict=True)}
    initial_config(cell.settings, cell.recipe, measured)


def run_cell(cell: CellSpec) -> dict[str, Any]:
    """Train and measure. Deterministic on the CPU, but for `seconds`.

    Returns:
        JSON data: `recall`, `exclusive`, `wrong_shared` (see recovery.py), `fve`, `fve_shared`, `gain_exclusive`, `l0`,
        `sizes`, `dead`, `limit`, `curve`, `by_frequency`, `stitch`, `verdict`, `seconds`.
    """
    started = time.monotonic()
    world = World.drawn(cell.world, cell.seed)
    recipe = cell.recipe
    device = torch.device(cell.device)
    curve: list[dict[str, Any]] = []
    every = max(1, recipe.steps // cell.snapshots)

    def after_step(trainer: Trainer) -> None:
        if trainer.step % every == 0:
            alive_F = trainer.since_active_F < _ALIVE_BATCHES * recipe.batch
            recall = recovery(world, dictionary_of(trainer.crosscoder, alive_F)).recall(world)
            curve.append({"step": trainer.step, "pairs": trainer.step * recipe.batch, **recall})

    stitch: Stitch | None = None
    if cell.architecture == "stitch-residual":
        crosscoder, stitch = train_stitch_residual(
            world, cell.seed, cell.settings, snapshot=after_step, train_part=TRAIN, fit_part=CALIBRATE, device=device
        )
    else:
        crosscoder = trained(cell, world, recipe, device, after_step)
    return {
        **_measured(cell, world, crosscoder, stitch, device),
        "limit": _limit(world, recipe),
        "curve": curve,
        "stitch": _stitch_r2(world, cell.seed, device),
        "seconds": time.monotonic() - started,
    }


def trained(
    cell: CellSpec, world: World, recipe: Recipe, device: torch.device, after_step: Callable[[Trainer], None]
) -> Crosscoder:
    """As `modeldiff train`, with scales and means from a sample in place of the store's."""
    x_a, x_b = _calibration(world, cell.seed, device)
    measured = {"a": Measured.of(x_a), "b": Measured.of(x_b)}
    crosscoder = Crosscoder.initialised(initial_config(cell.settings, recipe, measured), measured, seed=recipe.seed)
    trainer = Trainer(crosscoder.to(device), recipe, warn=False)
    stream = ConceptStream(world, batch=recipe.batch, seed=cell.seed, part=TRAIN, device=device)
    while trainer.step < recipe.steps:
        trainer.update(*stream.next())
        after_step(trainer)
    trainer.crosscoder.set_threshold(trainer.threshold.value, trainer.threshold_designated.value)
    return trainer.crosscoder


@torch.no_grad()
def _measured(
    cell: CellSpec, world: World, crosscoder: Crosscoder, stitch: Stitch | None, device: torch.device
) -> dict[str, Any]:
    """The dictionary on fresh pairs, with the inference threshold."""
    pairs = normalised_pairs(cell, world, crosscoder, stitch, EVALUATE, device)
    quality = Quality(crosscoder)
    fires_F = torch.zeros(crosscoder.n_features, dtype=torch.long, device=device)
    for _ in range(_EVALUATION_PAIRS // _CHUNK):
        x = pairs()
        f_BF = crosscoder.encode(*x, raw=False)
        quality.add_code(x, f_BF)
        fires_F += (f_BF > 0).sum(dim=0)
    dictionary = dictionary_of(crosscoder, fires_F > 0)
    found = recovery(world, dictionary)
    return {
        "recall": found.recall(world),
        "exclusive": found.exclusive,
        "wrong_shared": found.shared_recovering_exclusive,
        **quality.figures(),
        "l0": by_partition(crosscoder, fires_F / _EVALUATION_PAIRS),
        "sizes": {name: part.stop - part.start for name, part in crosscoder.slices.items()},
        "dead": {name: int(n) for name, n in by_partition(crosscoder, fires_F == 0).items()},
        "by_frequency": _by_frequency(world, found),
        "verdict": _verdict(cell, world, crosscoder, stitch, dictionary, device),
    }


def _verdict(
    cell: CellSpec,
    world: World,
    crosscoder: Crosscoder,
    stitch: Stitch | None,
    dictionary: Dictionary,
    device: torch.device,
) -> dict[str, dict[str, int]]:
    """How many exclusive features the evidence still calls exclusive, and what those recover."""
    if cell.architecture not in WITH_VERDICT:
        called_F = dictionary.alive_F
    else:
        pairs = normalised_pairs(cell, world, crosscoder, stitch, JUDGE, device)
        sampled = sample(crosscoder, [pairs() for _ in range(_EVALUATION_PAIRS // _CHUNK)], by_threshold(crosscoder))
        called_F = torch.zeros_like(dictionary.alive_F)
        for side in SIDES:
            evidence = judge(crosscoder, sampled, side)
            called_F[sampled.judged[side][evidence.exclusive_G].cpu()] = True
    counts = recovery(world, dataclasses.replace(dictionary, alive_F=called_F)).exclusive
    return {
        side: {"called": one["features"], **{name: one[name] for name in ("true", "shared", "nothing")}}
        for side, one in counts.items()
    }


def by_threshold(crosscoder: Crosscoder) -> Callable[[torch.Tensor], tuple[torch.Tensor, float]]:
    return lambda pre_BF: (crosscoder.active(pre_BF), crosscoder.config.threshold)


def normalised_pairs(
    cell: CellSpec, world: World, crosscoder: Crosscoder, stitch: Stitch | None, part: int, device: torch.device
) -> Pairs:
    """What the crosscoder reads, batch by batch: activations, or residuals of the stitch, in its units."""
    stream = ConceptStream(world, batch=_CHUNK, seed=cell.seed, part=part, device=device)

    def pairs() -> tuple[torch.Tensor, torch.Tensor]:
        x = stream.next()
        return crosscoder.normalise(*(stitch.residuals(*x) if stitch else x))

    return pairs


def _calibration(world: World, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    count = max(_CALIBRATION_PAIRS, _CALIBRATION_PAIRS_PER_WIDTH * max(world.spec.width_a, world.spec.width_b))
    return ConceptStream(world, batch=_CHUNK, seed=seed, part=CALIBRATE, device=device).pairs(count)


def _stitch_r2(world: World, seed: int, device: torch.device) -> dict[str, float]:
    x_a, x_b = _calibration(world, seed, device)
    half = len(x_a) // 2
    return stitch_r2(x_a[:half], x_b[:half], x_a[half:], x_b[half:])


def _limit(world: World, recipe: Recipe) -> float | None:
    """Most of the exclusive concepts that the slots given at the start allow to recover."""
    if not world.spec.n_exclusive:
        return None
    if recipe.n_a_only == 0:
        return 1.0
    return min(1.0, recipe.n_a_only / world.spec.n_exclusive)


def _by_frequency(world: World, found: Recovery) -> list[dict[str, Any]]:
    """Recovered concepts in bins of equally many, from rare to frequent."""
    random = torch.Generator().manual_seed(0)
    p_C = torch.stack([world.probabilities(random) for _ in range(_FREQUENCY_DRAWS)]).mean(dim=0)
    edges = p_C.quantile(torch.linspace(0, 1, _FREQUENCY_BINS + 1))
    bins_C = torch.bucketize(p_C, edges[1:-1])
    rows = []
    for kind, mask_C in (("shared", world.classes_C == SHARED), ("exclusive", world.classes_C != SHARED)):
        for number in range(_FREQUENCY_BINS):
            inside_C = mask_C & (bins_C == number)
            rows.append(
                {
                    "class": kind,
                    "low": float(edges[number]),
                    "high": float(edges[number + 1]),
                    "concepts": int(inside_C.sum()),
                    "any": int(found.any_C[inside_C].sum()),
                    "right": int(found.right_C[inside_C].sum()),
                }
            )
    return rows
