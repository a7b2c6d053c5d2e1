"""One cell of the benchmark: a world, an architecture and a seed -> a trained dictionary, measured against the truth.

The dictionary is that of `modeldiff train`: same class, same recipe, same trainer.

Legend: B pairs, F features, Da, Db widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.metrics import Quality, by_partition
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.recipe import Recipe, make_recipe
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.trainer import Trainer
from modeldiff.toy.recovery import dictionary_of, recovery
from modeldiff.toy.stream import ConceptStream
from modeldiff.toy.world import World, WorldSpec

# Streams of one seed: training, statistics for the normalisation, evaluation.
TRAIN, CALIBRATE, EVALUATE = 0, 1, 2
_CALIBRATION_PAIRS, _EVALUATION_PAIRS, _CHUNK = 16_384, 32_768, 2048


def train_settings(**values: Any) -> TrainSettings:
    return TrainSettings(**values)


def calibrated(world: World, seed: int, settings: TrainSettings, recipe: Recipe) -> Crosscoder:
    """A crosscoder to train, with scales and means from a sample, as `modeldiff train` takes them from the store."""
    stream = ConceptStream(world, batch=_CHUNK, seed=seed, part=CALIBRATE)
    pairs = [stream.next() for _ in range(_CALIBRATION_PAIRS // _CHUNK)]
    spec = world.spec
    norm = math.sqrt((spec.width_a + spec.width_b) / 2)
    x_a, x_b = (torch.cat(side) for side in zip(*pairs, strict=True))
    config = CrosscoderConfig(
        width_a=spec.width_a,
        width_b=spec.width_b,
        n_a_only=recipe.n_a_only,
        n_shared=recipe.n_shared,
        n_b_only=recipe.n_b_only,
        k=recipe.k,
        selection=settings.selection,
        combine=settings.combine,
        scale_a=norm / float(x_a.norm(dim=1).median()),
        scale_b=norm / float(x_b.norm(dim=1).median()),
    )
    return Crosscoder.initialised(
        config, x_a.mean(dim=0), x_b.mean(dim=0), seed=seed, decoder_norm=settings.decoder_norm
    )


def run_cell(spec: WorldSpec, seed: int, settings: TrainSettings, snapshots: int = 12, hook=None) -> dict[str, Any]:
    world = World.drawn(spec, seed)
    recipe = make_recipe(settings, widths=(spec.width_a, spec.width_b), pairs=10**12)
    crosscoder = calibrated(world, seed, settings, recipe)
    trainer = Trainer(crosscoder, recipe)
    stream = ConceptStream(world, batch=recipe.batch, seed=seed, part=TRAIN)
    curve = []
    every = max(1, recipe.steps // snapshots)
    while trainer.step < recipe.steps:
        trainer.update(*stream.next())
        if hook:
            hook(trainer, world)
        if trainer.step % every == 0:
            rec = recovery(world, dictionary_of(trainer.crosscoder, trainer.since_active_F < 50 * recipe.batch))
            curve.append({"step": trainer.step, **rec.recall(world)["any"]})
    trainer.crosscoder.set_threshold(trainer.threshold.value)
    return evaluated(world, seed, trainer.crosscoder) | {"curve": curve}


@torch.no_grad()
def evaluated(world: World, seed: int, crosscoder: Crosscoder) -> dict[str, Any]:
    stream = ConceptStream(world, batch=_CHUNK, seed=seed, part=EVALUATE)
    quality = Quality(crosscoder)
    fires_F = torch.zeros(crosscoder.n_features, dtype=torch.long)
    for _ in range(_EVALUATION_PAIRS // _CHUNK):
        x_a, x_b = crosscoder.normalise(*stream.next())
        f_BF = crosscoder.encode(x_a, x_b, raw=False)
        quality.add((x_a, x_b), crosscoder.decode(f_BF, raw=False), f_BF)
        fires_F += (f_BF > 0).sum(dim=0)
    found = recovery(world, dictionary_of(crosscoder, fires_F > 0))
    return {
        "recall": found.recall(world),
        "exclusive": found.exclusive,
        "wrong_shared": found.shared_recovering_exclusive,
        **quality.figures(),
        "l0": by_partition(crosscoder, fires_F / _EVALUATION_PAIRS),
        "sizes": {n: s.stop - s.start for n, s in crosscoder.slices.items()},
    }
