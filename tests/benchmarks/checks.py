"""What it costs that everything that is read is compared with its digest: stages with and without it.

Every run is the first one of its process as far as it knows, so it compares everything; later passes over the same
activations compare nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run as train
from modeldiff.features.run import run as features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace, artifact
from modeldiff.workspace.bits import RowLayout
from tests.benchmarks.rows import Options, Row, against, interleaved
from tests.made_activations import make_activations

WIDTH, PAIRS, SHARD_PAIRS = 512, 131_072, 32_768
BATCH, FEATURES, K = 2048, 512, 16
TRAIN = TrainSettings(features=FEATURES, k=K, steps=PAIRS // BATCH, batch=BATCH, device="cpu")
FEATURE = FeaturesSettings(device="cpu", predictability=False)


def rows(options: Options) -> Iterator[Row]:
    random = torch.Generator().manual_seed(0)
    x_a, x_b = (torch.randn(PAIRS, WIDTH, generator=random).bfloat16() for _ in SIDES)
    workspace = Workspace(options.folder / "workspace")
    make_activations(workspace, x_a, x_b, SHARD_PAIRS, encoding="bfloat16")
    del x_a, x_b
    sizes = f"{PAIRS} pairs, {WIDTH} + {WIDTH}, {FEATURES} features, one pass"
    stages: dict[str, Callable[[], Any]] = {
        "train": lambda: train(TRAIN, workspace, force=True),
        "features": lambda: features(FEATURE, workspace, force=True),
    }
    for name, run in stages.items():
        seconds = interleaved(
            {"unchecked": lambda run=run: unchecked(run), "ours": lambda run=run: checked(run)}, options.rounds
        )
        yield against(
            f"{name}: all that is read compared with its digest, against not", seconds, "unchecked", 0.95, sizes
        )


def checked(run: Callable[[], Any]) -> None:
    artifact._checked.clear()
    run()


def unchecked(run: Callable[[], Any]) -> None:
    made = RowLayout.of

    def trusting(*about: Any) -> RowLayout:
        layout = made(*about)
        layout.sound_P[:] = True
        return layout

    with patch.object(RowLayout, "of", trusting), patch.object(artifact, "CHEAP_BYTES", -1):
        run()
