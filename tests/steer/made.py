"""What steering needs, made small: two models of other widths, activations, a crosscoder, features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.model import LanguageModel
from modeldiff.settings import Settings, setting, settings
from modeldiff.steer.settings import SteerSettings, TransferSettings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from tests.made_activations import make_activations

LAYERS = {"a": 1, "b": 0}
PROMPTS = ("The quick", "It is a truth")
# Feature 0 is A's, 1 too but dead, 2 to 13 are shared, 14 is B's.
SHARED, OF_B = 2, 14
SCALES = {"a": 2.0, "b": 0.5}
GENERATOR = torch.Generator().manual_seed(5)
MAP_AB = 3 * torch.randn(32, 16, generator=GENERATOR)
SHIFT_B = torch.randn(16, generator=GENERATOR)


@settings
class MadeSettings(Settings):
    """Stands for the training's settings."""

    number: int = setting(default=0)
    """Only to make several crosscoders."""


@dataclass
class Made:
    """A workspace with features of two tiny models; B's activations are an affine map of A's."""

    workspace: Workspace
    crosscoder: Crosscoder
    activations: Artifact
    features: Artifact


def made_crosscoder(n_shared: int) -> Crosscoder:
    """With large random decoder rows."""
    config = CrosscoderConfig(
        width_a=32, width_b=16, n_a_only=2, n_shared=n_shared, n_b_only=1, k=2, scale_a=SCALES["a"],
        scale_b=SCALES["b"], threshold=0.1,
    )  # fmt: skip
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in crosscoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        crosscoder.b_enc.zero_()
        crosscoder.b_enc[1] = -1e6
    return crosscoder


def publish(
    workspace: Workspace, activations: Artifact, n_shared: int = 12, number: int = 0
) -> tuple[Crosscoder, Artifact]:
    """(a crosscoder, which is published, too; its features)."""
    crosscoder = made_crosscoder(n_shared)

    def build(work: Work) -> dict[str, int]:
        crosscoder.save_pretrained(work.folder)
        return {}

    order = Order("crosscoder", MadeSettings(number=number), {"activations": activations.as_input()}, 1)
    produce(workspace, order, build)
    return crosscoder, run_features(FeaturesSettings(predictability=False, device="cpu"), workspace)


def make(folder: Path, models: tuple[str | None, str | None]) -> Made:
    x_a = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    workspace = Workspace(folder)
    layers = (LAYERS["a"], LAYERS["b"])
    activations = make_activations(workspace, x_a, x_a @ MAP_AB + SHIFT_B, 400, models=models, layers=layers)
    crosscoder, features = publish(workspace, activations)
    return Made(workspace, crosscoder, activations, features)


def opened(folder: Path) -> LanguageModel:
    return load_model(ModelRef(str(folder)), torch.device("cpu"), torch.float32)


def steer(**values: Any) -> SteerSettings:
    return SteerSettings(
        **{"model": "A", "feature": 0, "prompt": PROMPTS, "max_new_tokens": 6, "device": "cpu", **values}
    )


def transfer(**values: Any) -> TransferSettings:
    return TransferSettings(**{"source": "A", "max_new_tokens": 6, "top": 4, "device": "cpu", **values})


def lines(artifact: Artifact, name: str = "generations.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.file(name).read_bytes().splitlines()]


def info(artifact: Artifact) -> dict[str, Any]:
    """steering.json or transfer.json."""
    found: dict[str, Any] = json.loads(artifact.file(f"{artifact.kind}.json").read_text())
    return found
