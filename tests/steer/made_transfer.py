"""What a transfer needs, made small: two models of other widths, activations, a crosscoder, features, a stitch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.features.measures.stitch.settings import StitchSettings
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.settings import Settings, setting, settings
from modeldiff.steer.transfer_settings import TransferSettings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from tests.made_activations import make_activations

LAYERS = {"a": 1, "b": 0}
POSITIVE = ("The quick brown fox", "A single man", "It was 1989")
NEGATIVE = ("Nobody minded", "A good fortune", "The lazy dog")


@settings
class MadeSettings(Settings):
    """Stands for the training's settings."""

    shared: int = setting(default=12)
    """Number of shared features."""


@dataclass
class Made:
    """A workspace with everything a transfer needs."""

    workspace: Workspace
    crosscoder: Crosscoder
    activations: Artifact
    positive: Path
    negative: Path

    @property
    def prompts(self) -> tuple[Path, Path]:
        return self.positive, self.negative


def made_crosscoder(n_shared: int = 12) -> Crosscoder:
    config = CrosscoderConfig(
        width_a=32, width_b=16, n_a_only=2, n_shared=n_shared, n_b_only=1, k=2, scale_a=2.0, scale_b=0.5, threshold=0.1
    )
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in crosscoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        crosscoder.b_enc.zero_()
    return crosscoder


def publish(workspace: Workspace, crosscoder: Crosscoder, activations: Artifact) -> Artifact:
    def build(work: Work) -> dict[str, int]:
        crosscoder.save_pretrained(work.folder)
        return {}

    made_with = MadeSettings(shared=crosscoder.config.n_shared)
    return produce(workspace, Order("crosscoder", made_with, {"activations": activations.as_input()}, 1), build)


def make(folder: Path, models: tuple[str | None, str | None], *, stitch: bool = True) -> Made:
    generator = torch.Generator().manual_seed(1)
    x_a = torch.randn(400, 32, generator=generator)
    x_b = 3 * x_a @ torch.randn(32, 16, generator=generator)
    workspace = Workspace(folder / "ws")
    activations = make_activations(workspace, x_a, x_b, 400, models=models, layers=(LAYERS["a"], LAYERS["b"]))
    crosscoder = made_crosscoder()
    publish(workspace, crosscoder, activations)
    run_features(FeaturesSettings(predictability=False, device="cpu"), workspace)
    if stitch:
        run_stitch(StitchSettings(device="cpu"), workspace)
    for name, prompts in (("positive", POSITIVE), ("negative", NEGATIVE)):
        (folder / f"{name}.txt").write_text("\n".join(prompts))
    return Made(workspace, crosscoder, activations, folder / "positive.txt", folder / "negative.txt")


def settings_of(**values: Any) -> TransferSettings:
    return TransferSettings(**{"source": "A", "max_new_tokens": 6, "top": 4, "device": "cpu", **values})


def info_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artifact.file("transfer.json").read_text())
    return found


def vectors_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("vectors.safetensors"))
