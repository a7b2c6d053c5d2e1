"""The features stage over a harvest against one epoch of training on the same pairs: looking must not cost more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing

import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.features.run import run
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.benchmarks.rows import Options, Row, against, interleaved
from tests.features.made_crosscoder import publish, words_of
from tests.made_activations import make_activations

WIDTH, FEATURES, K = 256, 4096, 32
# A quarter of what a harvest holds if nothing is said.
PAIRS, SHARD_PAIRS, DOCUMENT = 262_144, 65_536, 128
# k does not fall in the epoch that is timed: it is an epoch late in a run.
SETTINGS = TrainSettings(features=FEATURES, k=K, k_start=K, device="cpu")


def rows(options: Options) -> Iterator[Row]:
    made = Made(options)
    seconds = interleaved({"epoch": made.epoch, "features": made.features}, options.rounds)
    sizes = f"{PAIRS} pairs, {WIDTH} + {WIDTH}, {FEATURES} features, k {K}, with texts"
    yield against("features stage, against one epoch of training", seconds, "epoch", 1.0, sizes, ours="features")


class Made:
    """Activations of both models from common causes, texts for them, and a crosscoder in which k features fire."""

    def __init__(self, options: Options) -> None:
        x_a, x_b = activations()
        texts = words_of(PAIRS, DOCUMENT)
        self.workspace = Workspace(options.folder / "workspace")
        artifact = make_activations(self.workspace, x_a, x_b, SHARD_PAIRS, texts, encoding="bfloat16")
        self.store = ActivationStore(artifact)
        self.recipe = make_recipe(SETTINGS, widths=self.store.widths, pairs=PAIRS)
        crosscoder = self.untrained()
        pre_BF = crosscoder.pre_activations(*crosscoder.normalise(x_a[:2048], x_b[:2048])).detach()
        crosscoder.set_threshold(float(pre_BF.flatten().topk(K * 2048).values[-1]))
        publish(self.workspace, crosscoder, artifact)

    def untrained(self) -> Crosscoder:
        measured = Measured.in_store(self.store)
        return Crosscoder.initialised(initial_config(SETTINGS, self.recipe, measured), measured, seed=0)

    def epoch(self) -> None:
        """All pairs once, as `modeldiff train` takes them."""
        trainer = Trainer(self.untrained(), self.recipe, warn=False)
        blocks = self.store.blocks(2048)
        buffer = SETTINGS.buffer_mib << 20
        stream = PairStream(self.store, blocks, batch=SETTINGS.batch, seed=0, buffer_bytes=buffer)
        with closing(stream.batches()) as batches:
            for _ in range(PAIRS // SETTINGS.batch):
                trainer.update(*next(batches))

    def features(self) -> None:
        """The stage, from nothing."""
        run(FeaturesSettings(device="cpu"), self.workspace, force=True)


def activations() -> tuple[torch.Tensor, torch.Tensor]:
    """(x_a, x_b), each (PAIRS, WIDTH): sparse mixtures of causes, each of which has its own direction in each model."""
    random = torch.Generator().manual_seed(0)
    causes, active = 2048, 16
    which = torch.randint(causes, (PAIRS, active), generator=random)
    strength = torch.rand(PAIRS, active, generator=random) + 0.5
    x = []
    for _ in range(2):
        direction = torch.randn(causes, WIDTH, generator=random) / math.sqrt(WIDTH)
        mixed = torch.nn.functional.embedding_bag(which, direction, per_sample_weights=strength, mode="sum")
        x.append(mixed + 0.02 * torch.randn(PAIRS, WIDTH, generator=random))
    return x[0], x[1]
