"""A pair of tiny models with features whose effects are known, and stitches made by hand.

Both models end in a LayerNorm, and their last block is read: a push along the all-ones vector does nothing at all. Two
coordinates of the (tied) embedding are much larger than the others: a push along one of them does much more than one in
a random direction, and the two say different things.

Legend: D width of the models.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.linear.stitch import FIELDS, MAPS_NAME, STITCH_NAME
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from tests.features.made_crosscoder import MadeSettings, publish
from tests.harvest.conftest import make_texts
from tests.tiny_models import CHAT_TEMPLATE, save_tiny

WIDTH = 16
LAYER = 1
# Features of `crosscoder`, by what they do. 0 to 3 are A's, 4 to 7 shared, 8 to 11 B's.
LOUD, MUTE, DEAD = 0, 2, 3
SHARED_LOUD, B_LOUD = 4, 8


@dataclass
class Made:
    """Everything that a score is made from, but for the stitch."""

    workspace: Workspace
    activations: Artifact
    features: Artifact

    def copy(self, folder: Path) -> Made:
        """The same in another workspace."""
        shutil.copytree(self.workspace.folder, folder)
        workspace = Workspace(folder)
        return Made(workspace, workspace.find("activations"), workspace.find("features"))


def crosscoder() -> Crosscoder:
    """Each partition has a feature along coordinate 0, one along coordinate 1, one along all-ones, and a dead one."""
    config = CrosscoderConfig(width_a=WIDTH, width_b=WIDTH, n_a_only=4, n_shared=4, n_b_only=4, k=4, threshold=0.1)
    made = Crosscoder(config)
    rows = torch.cat([torch.eye(WIDTH)[:2], torch.ones(1, WIDTH) / WIDTH**0.5, torch.eye(WIDTH)[2:3]])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for encoder in (made.w_enc_a, made.w_enc_b):
            encoder.copy_(torch.randn(encoder.shape, generator=generator))
        for decoder in (made.w_dec_a, made.w_dec_b):
            decoder.copy_(rows.repeat(2, 1))
        made.b_enc.zero_()
        made.b_enc[DEAD::4] = -1e6
    return made


def make_pair(folder: Path) -> Made:
    """A two-block model in which coordinates 0 and 1 matter most, twice: harvested, with a crosscoder and features."""
    texts, model, file = make_texts(), folder / "model", folder / "texts.txt"
    file.write_text("\n\n".join(texts), encoding="utf-8")
    save_tiny(model, "gpt2", texts=texts, width=WIDTH, layers=2, chat_template=CHAT_TEMPLATE)
    weights = load_file(model / "model.safetensors")
    weights["transformer.wte.weight"][:, :2] *= 8
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    workspace = Workspace(folder / "ws")
    harvest = HarvestSettings(
        model_a=str(model), model_b=str(model), texts=(str(file),), pairs=300, shard_pairs=150, context=48,
        layer_a=LAYER, layer_b=LAYER, device="cpu", storage="float32",
    )  # fmt: skip
    activations = run_harvest(harvest, workspace)
    publish(workspace, crosscoder(), activations)
    features = run_features(FeaturesSettings(predictability=False, device="cpu", outlier_factor=0.0), workspace)
    return Made(workspace, activations, features)


def publish_stitch(made: Made, a_to_b: torch.Tensor, label: str, bias: torch.Tensor | None = None) -> Artifact:
    """A stitch that moves directions of A by this matrix (D, D) and those of B by its transpose; the last 100 pairs are
    held out."""
    store = made.activations
    info: dict[str, Any] = dict.fromkeys(FIELDS)
    info |= {"format": 1, "activations": store.ref, "activations_digest": store.manifest.digest, "stretches": 2}
    info |= {"sides": {side: {"width": WIDTH} for side in ("a", "b")}, "outlier_factor": 0.0}
    info |= {"maps": {way: {"ridge": 0.0, "r2": 0.5} for way in ("a_to_b", "b_to_a")}}
    pairs = int(store.metrics["pairs"])
    offset = torch.zeros(WIDTH) if bias is None else bias
    tensors = {"a_to_b.w": a_to_b.clone(), "b_to_a.w": a_to_b.T.clone(memory_format=torch.contiguous_format)}
    tensors |= {"a_to_b.bias": offset, "b_to_a.bias": offset.clone()}
    stretches = {"first": [0, pairs - 100], "stop": [pairs - 100, pairs], "part": [0, 2]}
    tensors |= {f"stretch.{name}": torch.tensor(values) for name, values in stretches.items()}

    def build(work: Work) -> dict[str, Any]:
        work.write_json(STITCH_NAME, info)
        work.write_bytes(MAPS_NAME, save(tensors))
        return {}

    order = Order("stitch", MadeSettings(label=label), {"activations": store.as_input()}, 1)
    return produce(made.workspace, order, build)


def swapped() -> torch.Tensor:
    """The matrix that takes coordinate 0 to 1 and 1 to 0, and leaves the others."""
    order = torch.arange(WIDTH)
    order[0], order[1] = 1, 0
    return torch.eye(WIDTH)[order]
