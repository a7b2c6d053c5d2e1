"""Every stage on the double of a device gives what it gives on the CPU, from the same artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import modeldiff.features.measures.impact.removal as removal
import modeldiff.toy.run as toy
from modeldiff.contrast.cause import CausePlace, generate_variants, shown
from modeldiff.contrast.run import run as run_contrast
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.crosscoder import load
from modeldiff.diff.run import run as run_diff
from modeldiff.diff.settings import DiffSettings
from modeldiff.features.measures.evaluate import EvaluateSettings
from modeldiff.features.measures.evaluate.run import run as run_evaluate
from modeldiff.features.measures.explain import ExplainSettings
from modeldiff.features.measures.explain.run import run as run_explain
from modeldiff.features.measures.impact import ImpactSettings
from modeldiff.features.measures.impact.run import run as run_impact
from modeldiff.features.measures.match import MatchSettings
from modeldiff.features.measures.match.run import run as run_match
from modeldiff.features.measures.score import ScoreSettings
from modeldiff.features.measures.score.run import run as run_score
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.lm.load import load_model
from modeldiff.lm.ref import ModelRef
from modeldiff.steer.run import run as run_steer
from modeldiff.steer.settings import SteerSettings, TransferSettings
from modeldiff.steer.transfer import run as run_transfer
from modeldiff.toy.run import run as run_toy
from modeldiff.toy.settings import ToySettings
from modeldiff.workspace import Artifact, Workspace
from tests.device.conftest import copied, read_models
from tests.device.double import Double, double

ONE: dict[str, Any] = {"crosscoder": "crosscoder:1"}
FLOAT32: dict[str, Any] = {"dtype": "float32"}
SHORT: dict[str, Any] = {"features": "features:1", "max_new_tokens": 6, **FLOAT32}
PROMPTS = ("The quick", "It is a truth")
TOY: dict[str, Any] = {
    "preset": "quick", "sizes": (0.5,), "architectures": ("dfc",), "seeds": 1, "steps": 3, "batch": 64, "jobs": 1,
}  # fmt: skip
# Attention adds in another order on a device; everything else is computed alike.
TOLERANCE: dict[str, float] = {"rtol": 2e-3, "atol": 2e-5}

STAGES: dict[str, tuple[Callable[..., Artifact], Callable[[Any], Any]]] = {
    "features": (run_features, lambda on: FeaturesSettings(**ONE, **on)),
    "contrast": (
        run_contrast,
        lambda on: ContrastSettings(**ONE, continuations="continuations:1", least=2, tokens_differ=True, **on),
    ),
    "stitch": (run_stitch, lambda on: StitchSettings(activations="activations:1", **on)),
    "evaluate": (run_evaluate, lambda on: EvaluateSettings(**ONE, pairs=300, **FLOAT32, **on)),
    "impact": (run_impact, lambda on: ImpactSettings(**ONE, pairs=300, samples=1, **FLOAT32, **on)),
    "match": (run_match, lambda on: MatchSettings(crosscoders=("crosscoder:1", "crosscoder:2"), **on)),
    "explain": (run_explain, lambda on: ExplainSettings(features="features:1", feature=(0, 20), **on)),
    "steer": (run_steer, lambda on: SteerSettings(model="A", feature=20, prompt=PROMPTS, **SHORT, **on)),
    "steer both": (
        run_steer, lambda on: SteerSettings(model="B", feature=60, prompt=PROMPTS, both=True, **SHORT, **on)
    ),
    "steer drawn": (
        run_steer,
        lambda on: SteerSettings(model="A", feature=20, prompt=PROMPTS, temperature=1.0, top_p=0.9, **SHORT, **on),
    ),
    "transfer": (
        run_transfer, lambda on: TransferSettings(source="A", vector_from_feature=20, prompt=PROMPTS, **SHORT, **on)
    ),
    "toy": (run_toy, lambda on: ToySettings(**TOY, **on)),
}  # fmt: skip


def test_models_are_read_and_go_on_as_on_the_cpu(
    on_cpu: Workspace, settings_of_models: dict[str, Any], tmp_path: Path
) -> None:
    with double() as gpu:
        device = read_models(settings_of_models | {"device": "cuda"}, Workspace(tmp_path / "device"))
    assert gpu.operations
    for artifact in device:
        assert_alike(contents(on_cpu.find(artifact.kind, artifact.ref)), contents(artifact), artifact.kind)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_what_it_gives_on_the_cpu(
    stage: str, on_cpu: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_FEATURES", 2)
    monkeypatch.setattr(toy, "figures_of", lambda *_: {})
    run, settings = STAGES[stage]
    workspace = copied(on_cpu, tmp_path / "ws")
    cpu = run(settings({"device": "cpu"}), workspace, force=True)
    with double() as gpu:
        device = run(settings({"device": "cuda"}), workspace, force=True)
    assert gpu.operations, "nothing was computed on the device"
    assert_alike(contents(cpu), contents(device))


def test_features_are_removed_for_a_cause_as_on_the_cpu(on_cpu: Workspace, settings_of_models: dict[str, Any]) -> None:
    ref, feature = (
        ModelRef(settings_of_models["model_a"]),
        shown(load(on_cpu.find("crosscoder", "crosscoder:1")), [20], "a"),
    )
    places = [CausePlace(0, i, i, {"a": list(range(10, 14 + i % 3))}) for i in range(6)]

    def made(on: str) -> list[list[str]]:
        lm = load_model(ref, torch.device(on), torch.float32)
        return generate_variants(lm, "a", places, [feature, None] * 3, layer=0, tokens=6, seed=0)

    cpu = made("cpu")
    with double():
        assert made("cuda") == cpu


def test_a_judge_of_this_machine_and_what_it_judges(
    on_cpu: Workspace, settings_of_models: dict[str, Any], tmp_path: Path
) -> None:
    judge = {"judge": "local", "judge_model": settings_of_models["model_a"], "judge_max_tokens": 4}
    score = {
        "feature": (20,),
        "strength": (0.0, 1.0),
        "prompt": PROMPTS[:1],
        "random_directions": 1,
        "temperature": 0.0,
    }

    def made(on: str, workspace: Workspace) -> list[Artifact]:
        explain = ExplainSettings(features="features:1", feature=(20,), texts=3, **judge, device=on)
        scored = ScoreSettings(**score, **judge, **SHORT, chat="no", device=on)
        return [run_explain(explain, workspace), run_score(scored, workspace)]

    cpu = made("cpu", copied(on_cpu, tmp_path / "cpu"))
    with double():
        device = made("cuda", copied(on_cpu, tmp_path / "device"))
    for one, other in zip(cpu, device, strict=True):
        assert_alike(contents(one), contents(other), one.kind)


def test_a_whole_diff_with_what_a_device_chooses(
    settings_of_models: dict[str, Any], tmp_path: Path, gpu: Double
) -> None:
    """bfloat16 in models, storage and training: it ends, and says where it was made."""
    small = {"pairs": 900, "features": 32, "k": 4, "steps": 6, "places": 40}
    made = vars(run_diff(DiffSettings(**settings_of_models, **small), Workspace(tmp_path / "ws"))).values()
    devices = {one.kind: one.manifest.environment.get("device") for one in made}
    assert set(devices.values()) == {"cuda:0", None}
    assert {kind for kind, device in devices.items() if device is None} <= {"report"}
    assert gpu.operations


def contents(artifact: Artifact) -> dict[str, Any]:
    """Arrays and JSON of an artifact by file; without what names the device, and without digests."""
    found: dict[str, Any] = {}
    for name in artifact.files():
        file = artifact.file(name)
        if name.endswith(".safetensors"):
            found[name] = {key: value for key, value in load_file(file).items() if value.dtype != np.uint8}
        elif name.endswith(".h5"):
            found[name] = arrays_of(file)
        elif name.endswith(".jsonl") and not name.startswith("logs/"):
            found[name] = [json.loads(line) for line in file.read_text().splitlines()]
        elif name.endswith(".json"):
            found[name] = json.loads(file.read_text())
    return found


def arrays_of(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(file) as opened:
        opened.visititems(lambda key, one: found.update({key: one[()]}) if isinstance(one, h5py.Dataset) else None)
    return found


def assert_alike(one: Any, other: Any, at: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one.keys() - {"device"}:
            assert_alike(one[key], other[key], f"{at}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), at
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_alike(left, right, f"{at}/{number}")
    elif isinstance(one, (float, np.ndarray)) and np.asarray(one).dtype.kind == "f":
        np.testing.assert_allclose(np.asarray(other, float), np.asarray(one, float), err_msg=at, **TOLERANCE)
    else:
        assert np.array_equal(one, other), (at, one, other)
