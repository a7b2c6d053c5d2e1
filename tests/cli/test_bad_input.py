"""Bad input: one line, the right exit code (2 wrong usage or input, 1 damaged data or the machine), nothing lost."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from modeldiff.cli.main import run
from modeldiff.workspace import Workspace
from tests.cli.conftest import Call
from tests.made_activations import make_activations
from tests.tiny_models import save_tiny

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "a", "gpt2", width=32)
    save_tiny(folder / "b", "llama", width=48)
    (folder / "good.txt").write_text("It was 1989, and nobody minded. " * 20)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with activations and a crosscoder: only to be read."""
    folder = tmp_path_factory.mktemp("trained") / "ws"
    generator = torch.Generator().manual_seed(0)
    x_a_BD, x_b_BD = (torch.randn(1500, width, generator=generator) for width in (16, 24))
    make_activations(Workspace(folder), x_a_BD, x_b_BD, shard_pairs=500)
    with pytest.raises(SystemExit, match="0"):
        run(["--workspace", str(folder), *TRAIN])
    return folder


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(trained, tmp_path / "ws"))


TRAIN = ["train", "--features", "64", "--k", "4", "--steps", "3", "--batch", "128", "--device", "cpu"]


def harvest(models: Path, texts: Path | str, *more: str) -> list[str]:
    return [
        "harvest", "--model-a", str(models / "a"), "--model-b", str(models / "b"), "--texts", str(texts),
        "--pairs", "50", "--context", "64", "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.txt", None, "nowhere.txt"),
        ("empty.txt", "", "empty.txt"),
        ("t.jsonl", '\n{"text": oops}\n', "line 2"),
    ],
)
def test_texts_that_cannot_be_read(
    tmp_path: Path, models: Path, fails: Fails, name: str, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    message = fails(2, tmp_path / "ws", *harvest(models, tmp_path / name))
    assert name in message
    assert said in message


def test_a_model_that_computes_nan(tmp_path: Path, models: Path, fails: Fails) -> None:
    shutil.copytree(models / "a", tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    weights = load_file(path)
    weights["transformer.h.0.mlp.c_fc.bias"][:] = np.nan
    save_file(weights, path, metadata={"format": "pt"})
    args = harvest(models, models / "good.txt")
    args[args.index(str(models / "a"))] = str(tmp_path / "broken")
    message = fails(1, tmp_path / "ws", *args)
    assert "NaN" in message or "finite" in message


STEER = "steer --model A --feature 1 --prompt x"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train --activations 7", "no activations called '7'"),
        ("features --crosscoder crosscoder:7", "no crosscoder called 'crosscoder:7'"),
        (STEER, "run `modeldiff features` first"),
        ("workspace show features:1", "run `modeldiff features` first"),
        ("train --features 32 --k 33", "--k"),
        ("train --exclusive 0.5", "--exclusive"),
        ("features stitch --pairs 99", "--pairs must be at least 100, found 99"),
        ("features stitch --outlier-factor 0.01", "raise --outlier-factor"),
        ("features stitch --activations crosscoder:1", "is not of the kind 'activations'"),
    ],
)
def test_senseless_settings_and_unknown_artifacts(trained: Path, fails: Fails, command: str, said: str) -> None:
    before = [one.ref for one in Workspace(trained).artifacts()]
    assert said in fails(2, trained, *command.split())
    assert [one.ref for one in Workspace(trained).artifacts()] == before


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_corrupted_shard(workspace: Path, fails: Fails, damage: str) -> None:
    path = workspace / "activations" / "1" / "shards" / "00001.b.h5"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "truncate" else content)
    before = sorted(workspace.rglob("*.safetensors"))
    message = fails(1, workspace, *TRAIN, "--seed", "1")
    assert "00001.b.h5" in message
    assert "workspace remove activations:1" in message
    assert "activations:1" in fails(1, workspace, "workspace", "verify")
    assert sorted(workspace.rglob("*.safetensors")) == before


def test_a_nan_in_the_middle_of_a_store_leaves_no_artifact(tmp_path: Path, fails: Fails) -> None:
    x_a_BD, x_b_BD = torch.randn(1500, 16), torch.randn(1500, 24)
    x_b_BD[700, 3] = torch.nan
    make_activations(Workspace(tmp_path / "ws"), x_a_BD, x_b_BD, shard_pairs=500)
    assert "not finite numbers: harvest them again" in fails(1, tmp_path / "ws", *TRAIN, "--steps", "12")
    assert Workspace(tmp_path / "ws").artifacts("crosscoder") == []


def test_truncated_weights(workspace: Path, fails: Fails) -> None:
    path = workspace / "crosscoder" / "1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert "model.safetensors" in fails(1, workspace, "features", "--device", "cpu")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("features --device cpu", "a pass over 64 features needs"),
        ("features stitch --device cpu", "a stitch of widths 16 and 24 needs"),
        ("toy --preset quick --jobs 1", "cells needs"),
    ],
)
def test_a_disk_that_is_too_full_is_found_before_anything_is_computed(
    workspace: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, command: str, says: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert says in fails(1, workspace, *command.split())


def test_newer_workspace(workspace: Path, fails: Fails) -> None:
    (workspace / "workspace.json").write_text(json.dumps({"format": 4, "versions": {}}))
    assert "upgrade modeldiff" in fails(2, workspace, "workspace", "list")


def test_damage_can_be_removed_and_made_again(workspace: Path, call: Call) -> None:
    (workspace / "crosscoder" / "1" / "manifest.json").write_text("{}")
    assert call(workspace, "workspace", "remove", "crosscoder:1", "--force")[0] == 0
    assert call(workspace, *TRAIN)[0] == 0
    assert [a.ref for a in Workspace(workspace).artifacts("crosscoder")] == ["crosscoder:2"]


def test_random_garbage_in_every_json_file_is_an_error_not_a_crash(workspace: Path, fails: Fails) -> None:
    garbage = bytes(random.Random(0).randbytes(40))
    for name in ("crosscoder/1/config.json", "activations/1/store.json", "crosscoder/1/manifest.json"):
        path = workspace / name
        content = path.read_bytes()
        path.write_bytes(garbage)
        assert path.name in fails(1, workspace, "features", "--device", "cpu")
        path.write_bytes(content)
