"""Two tiny models that differ, harvested once on the same texts, with a crosscoder whose features fire now and then.

Legend: N pairs, D width of the models, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.screen.settings import ScreenSettings
from modeldiff.workspace import Artifact, Workspace
from tests.features.made_crosscoder import publish
from tests.harvest.conftest import make_texts
from tests.tiny_models import CHAT_TEMPLATE, save_tiny

WIDTH = 16
N_ONLY, N_SHARED = 6, 6
# Most features fire on one pair in ten to one in five.
BIAS = -35.0
DOCUMENTS = make_texts(200)
# What lets through whatever was measured.
OPEN: dict[str, Any] = {
    "least_firings": 1, "most_density": 1.0, "most_predictable": 1.0, "twin": 1.0, "least_asymmetry": -1.0,
    "most_surface": 1.0,
}  # fmt: skip


@dataclass
class Made:
    """What is screened."""

    workspace: Workspace
    activations: Artifact
    crosscoder: Artifact


def settings(**changes: Any) -> ScreenSettings:
    """A screen that takes seconds and leaves something."""
    return ScreenSettings(**{"device": "cpu", "pairs": 600, "samples": 2, "top": 3, **OPEN, **changes})


def save_model(folder: Path, texts: Iterable[str], seed: int) -> Path:
    """A two-block model; another seed, other weights and the same tokenizer."""
    save_tiny(folder, "gpt2", texts=texts, width=WIDTH, layers=2, seed=seed, chat_template=CHAT_TEMPLATE)
    weights = load_file(folder / "model.safetensors")
    for name, one in weights.items():
        if ".attn." in name and one.ndim == 2:
            one *= 8  # what came before matters: features are more than the last word
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def crosscoder(n_only: int = N_ONLY, *, alike: bool = False) -> Crosscoder:
    """Random directions; with `alike`, the same ones on both sides."""
    config = CrosscoderConfig(
        width_a=WIDTH, width_b=WIDTH, n_a_only=n_only, n_shared=N_SHARED, n_b_only=n_only, k=4, threshold=0.5
    )
    made = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    only, shared = (torch.randn(n, WIDTH, generator=generator) for n in (n_only, N_SHARED))
    other, other_shared = (torch.randn(n, WIDTH, generator=generator) for n in (n_only, N_SHARED))
    rows_a = torch.cat([only, shared])
    rows_b = torch.cat([shared, only]) if alike else torch.cat([other_shared, other])
    with torch.no_grad():
        for encoder, decoder, rows in ((made.w_enc_a, made.w_dec_a, rows_a), (made.w_enc_b, made.w_dec_b, rows_b)):
            encoder.copy_(rows)
            decoder.copy_(rows / rows.norm(dim=1, keepdim=True))
        made.b_enc.fill_(BIAS)
    return made


def make(folder: Path, models: dict[str, Path], texts: Path, made: Crosscoder) -> Made:
    """Harvest two models (the same one twice, if need be) and publish the crosscoder."""
    workspace = Workspace(folder)
    harvest = HarvestSettings(
        model_a=str(models["a"]), model_b=str(models["b"]), texts=(str(texts),), pairs=2000, shard_pairs=1000,
        context=48, layer_a=0, layer_b=0, device="cpu", storage="float32",
    )  # fmt: skip
    activations = run_harvest(harvest, workspace)
    return Made(workspace, activations, publish(workspace, made, activations))
