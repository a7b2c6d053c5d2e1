"""The double of a device, and what its tests are run on: two tiny models, texts, and artifacts made on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.contrast import cause, sampling
from modeldiff.contrast.continuations import run as run_continuations
from modeldiff.contrast.settings import ContinuationsSettings
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run as run_train
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace import Artifact, Workspace
from tests.contrast.conftest import make_texts
from tests.device.double import Double, double
from tests.tiny_models import CHAT_TEMPLATE, save_tiny

TRAIN: dict[str, Any] = {
    "activations": "activations:1", "features": 64, "exclusive": 0.2, "k": 4, "batch": 128, "steps": 12,
    "precision": "float32", "dead_tokens": 256,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a real device")


@pytest.fixture(autouse=True)
def _equal_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are larger on a device; what is drawn in one depends on its size."""
    for module in (cause, sampling):
        monkeypatch.setitem(module._BATCH, "cuda", module._BATCH["cpu"])


@pytest.fixture
def gpu() -> Iterator[Double]:
    with double() as gpu:
        yield gpu


@pytest.fixture(scope="session")
def settings_of_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """model_a, model_b and texts, as settings have them."""
    folder, texts = tmp_path_factory.mktemp("device"), make_texts(60)
    a = save_tiny(folder / "a", "gpt2", texts=texts, width=16, layers=2, chat_template=CHAT_TEMPLATE)
    b = save_tiny(folder / "b", "llama", texts=texts[:20], width=24, vocab_size=400, layers=2, seed=1)
    lines = [json.dumps({"text": text, "source": ("web", "code")[i % 2]}) for i, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return {"model_a": str(a), "model_b": str(b), "texts": (str(folder / "texts.jsonl"),)}


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory: pytest.TempPathFactory, settings_of_models: dict[str, Any]) -> Workspace:
    """activations:1, continuations:1, two crosscoders, features:1 and stitch:1, made on the CPU in float32."""
    workspace = Workspace(tmp_path_factory.mktemp("on_cpu") / "ws")
    read_models(settings_of_models | {"device": "cpu"}, workspace)
    for seed in (0, 1):
        run_train(TrainSettings(**TRAIN, seed=seed, device="cpu"), workspace)
    run_features(FeaturesSettings(crosscoder="crosscoder:1", device="cpu"), workspace)
    run_stitch(StitchSettings(activations="activations:1", device="cpu"), workspace)
    return workspace


def read_models(given: dict[str, Any], workspace: Workspace) -> list[Artifact]:
    """activations:1 and continuations:1."""
    harvest = {"pairs": 900, "shard_pairs": 500, "storage": "float32", "layer_a": 0, "layer_b": 0}
    activations = run_harvest(HarvestSettings(**given, **harvest, dtype="float32"), workspace)
    settings = ContinuationsSettings(**given, places=60, tokens=4, dtype="float32")
    return [activations, run_continuations(settings, workspace)]


def copied(workspace: Workspace, folder: Path) -> Workspace:
    """The same in another folder, which stages may add to."""
    shutil.copytree(workspace.folder, folder)
    return Workspace(folder)
