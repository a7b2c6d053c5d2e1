"""A whole `modeldiff train`, from the call to the published artifact: which share of the time are its steps?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.workspace import Workspace
from tests.benchmarks.rows import Options, Row
from tests.made_activations import make_activations

_PAIRS, _WIDTH, _FEATURES, _K, _STEPS = 60_000, 512, 8192, 64, 200


def rows(options: Options) -> Iterator[Row]:
    workspace = Workspace(options.folder / "w")
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(_PAIRS, 64, generator=generator)
    x_a, x_b = (common @ torch.randn(64, _WIDTH, generator=generator) / 8 for _ in "ab")
    x_a += torch.randn(_PAIRS, _WIDTH, generator=generator) / 2
    x_b += torch.randn(_PAIRS, _WIDTH, generator=generator) / 2
    make_activations(workspace, x_a, x_b, 20_000, encoding="bfloat16")
    del x_a, x_b, common
    settings = TrainSettings(
        features=_FEATURES, k=_K, k_start=_K, steps=_STEPS, device="cpu", checkpoint_seconds=20.0, buffer_mib=64
    )
    seconds: list[float] = []
    update = Trainer.update

    def timed(trainer: Trainer, *batch: torch.Tensor) -> dict[str, Any] | None:
        start = time.perf_counter()
        line = update(trainer, *batch)
        seconds.append(time.perf_counter() - start)
        return line

    with mock.patch.object(Trainer, "update", timed):
        start = time.perf_counter()
        run(settings, workspace)
        whole = time.perf_counter() - start
    # What a step costs without its line in the log: the figures of a logged one do not count as the step's.
    plain = statistics.median(seconds) * len(seconds)
    note = (
        f"{_STEPS} steps in {whole:.1f} s with reading, a log line for every tenth, checkpoints, evaluation; "
        f"d {_WIDTH}+{_WIDTH}, {_FEATURES} features, k {_K}"
    )
    yield Row("share of the steps in `modeldiff train`", plain / whole, 0.9, "", note=note)
