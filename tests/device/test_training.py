"""Training on the double of a device: the same weights as on the CPU, and how often a step waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run
from modeldiff.workspace import Workspace
from tests.device.conftest import TRAIN, copied
from tests.device.double import Double, double
from tests.device.steps import ROWS, step_counts, train_some, trainer_on

BFLOAT16: dict[str, Any] = {"precision": "bfloat16"}
DEAD: dict[str, Any] = {"dead_tokens": 2 * ROWS}
RECIPES: dict[str, dict[str, Any]] = {
    "dfc": {**DEAD, "log_every": 2},
    "dfc bfloat16": {**DEAD, **BFLOAT16},
    "without auxiliary loss": {"auxk_alpha": 0.0, **BFLOAT16},
    "standard": {"architecture": "standard", **DEAD, **BFLOAT16},
    "norm": {"loss": "norm", "selection": "mean", "combine": "mean", **DEAD, "log_every": 2},
    "designated": {"architecture": "dsf-norms", **DEAD},
    "audits": {"audit_steps": (3, 7), **DEAD},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_trained_weights_are_those_of_the_cpu(recipe: str) -> None:
    """To the bit in float32. In bfloat16 a device rounds the encoder's product once, and not twice."""

    def trained(device: str) -> dict[str, torch.Tensor]:
        trainer = trainer_on(device, **RECIPES[recipe])
        trainer.optimizer.scales = False  # which rounds otherwise: test_adam.py
        for _ in train_some(trainer, 9):
            pass
        assert trainer.left_out, "no pair was an outlier"
        return {name: value.cpu() for name, value in trainer.crosscoder.state_dict().items()}

    cpu = trained("cpu")
    with double():
        device = trained("cuda")
    for name, value in cpu.items():
        coarse = RECIPES[recipe].get("precision") == "bfloat16"
        torch.testing.assert_close(device[name], value, rtol=0, atol=1e-3 if coarse else 0, msg=name)


def test_a_run_with_audits_is_written_continued_and_evaluated(
    on_cpu: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = TRAIN | {"audits": 2, "audit_pairs": 256, "steps": 16, "log": None}
    workspace = copied(on_cpu, tmp_path / "ws")
    cpu = run(TrainSettings(**values, device="cpu"), workspace)
    with double() as gpu:
        device = run(TrainSettings(**values, device="cuda"), workspace, force=True)
        assert any(one.startswith("_to_copy") for one in gpu.waits)
    assert device.manifest.environment["device"] == "cuda:0"
    one, other = (load_file(artifact.file("model.safetensors")) for artifact in (cpu, device))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)
    lines = [[json.loads(line) for line in artifact.file("training.jsonl").open()] for artifact in (cpu, device)]
    assert [line["slots"] for line in lines[0]] == [line["slots"] for line in lines[1]]
    assert sum(line["audit"] is not None for line in lines[1]) == 2


def test_bfloat16_is_what_a_device_trains_in(on_cpu: Workspace, tmp_path: Path, gpu: Double) -> None:
    workspace = copied(on_cpu, tmp_path / "ws")
    made = run(TrainSettings(**TRAIN | {"precision": "auto"}, device="auto"), workspace, force=True)
    assert (made.manifest.environment["device"], made.manifest.environment["dtype"]) == ("cuda:0", "bfloat16")


@pytest.mark.parametrize("values", [{"auxk_alpha": 0.0}, DEAD, {"architecture": "standard", **DEAD}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_waits_four_times(values: dict[str, Any], precision: str) -> None:
    counts = step_counts(precision=precision, **values)
    assert sum(counts.waits.values()) == 4, counts.waits
