"""The whole harvest: its artifact, its cache, its interruptions, its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from modeldiff.errors import InputError, MachineError
from modeldiff.harvest.run import estimate, plan, run
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.stage import Work


def test_the_artifact(make_settings, workspace: Workspace) -> None:
    artifact = run(make_settings(), workspace, name="mine")
    store = ActivationStore(artifact)
    assert store.pairs == artifact.metrics["pairs"] == 500
    assert store.widths == (16, 24)
    assert store.info.sources == ["words"]
    assert artifact.problems() == []
    for side in SIDES:
        x_ND = np.concatenate([store.read_side(side, block).numpy() for block in store.blocks(100)]).astype(np.float64)
        norms = np.linalg.norm(x_ND, axis=1)
        np.testing.assert_allclose(store.mean[side].numpy(), x_ND.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(store.info.sides[side].median_norm, np.median(norms), rtol=1e-6)
    report = json.loads(artifact.file("alignment.json").read_text())
    assert report["pairs_by_source"] == {"words": 500}
    assert 0 < report["shares_kept"]["a"]["tokens"] <= 1
    assert "CJK" in report["shares_kept"]["a"]["by_script"]


def test_the_cache(make_settings, workspace: Workspace, texts_file: Path, tmp_path: Path, capsys) -> None:
    assert run(make_settings(), workspace).ref == "activations:1"
    moved = tmp_path / "words.txt"
    moved.write_bytes(texts_file.read_bytes())
    # Neither the place of the texts, nor the device or batch size, make other activations.
    assert run(make_settings(texts=(str(moved),), batch_tokens=999), workspace).ref == "activations:1"
    assert "activations:1 is up to date" in capsys.readouterr().err
    assert run(make_settings(layer_a=0), workspace).ref == "activations:2"
    assert "layer_a" in capsys.readouterr().err
    assert run(make_settings(layer_a=1), workspace).ref == "activations:3"
    moved.write_text(texts_file.read_text() + "\n\nmore")
    assert run(make_settings(texts=(str(moved),)), workspace).ref == "activations:4"
    assert run(make_settings(texts=(f"{texts_file}@2",)), workspace).ref == "activations:5"


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_interrupted_anywhere_it_ends_with_the_same_bytes(
    make_settings, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    straight = run(make_settings(), Workspace(tmp_path / "straight"))
    commit = Work.commit

    def commit_and_stop(work: Work, temporary: Path, name: str) -> None:
        if not before or name in tried:
            commit(work, temporary, name)
        if name not in tried:
            tried.add(name)
            raise KeyboardInterrupt

    tried: set[str] = set()
    monkeypatch.setattr(Work, "commit", commit_and_stop)
    interruptions = 0
    while True:
        try:
            artifact = run(make_settings(), workspace)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == len(straight.manifest.files) - len(straight.files("logs/"))
    assert artifact.manifest.digest == straight.manifest.digest
    assert artifact.metrics == straight.metrics
    assert artifact.problems() == []


def test_a_finished_side_is_not_captured_again(make_settings, workspace: Workspace, interrupted_at, capsys) -> None:
    interrupted_at(lambda: run(make_settings(), workspace), ".b.h5")
    capsys.readouterr()
    run(make_settings(), workspace)
    said = capsys.readouterr().err
    assert "continuing what was begun" in said
    assert "model B" in said
    assert "model A:" not in said


def test_too_few_texts_are_said(make_settings, workspace: Workspace, capsys) -> None:
    artifact = run(make_settings(pairs=100_000, shard_pairs=1000), workspace)
    assert artifact.metrics["texts_ran_out"]
    assert artifact.metrics["pairs"] < artifact.metrics["pairs_asked_for"] == 100_000
    assert f"only {artifact.metrics['pairs']:,} of the 100,000 pairs asked for" in capsys.readouterr().err


def test_the_estimate_reads_no_weights_writes_nothing_and_is_near_the_truth(
    make_settings, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("modeldiff.harvest.run.load_model", None)
        planned = estimate(make_settings(pairs=1000, shard_pairs=1000), workspace)
        assert planned["pairs"] == 1000
        assert planned["fits"]
        assert (planned["a"]["width"], planned["a"]["layers"], planned["a"]["layer"]) == (16, 3, 1)
        assert 0 < planned["b"]["kept"] < 1
        assert not workspace.folder.exists()
    artifact = run(make_settings(pairs=1000, shard_pairs=1000), workspace)
    written = sum(artifact.manifest.files[name].size for name in artifact.files("shards/"))
    assert 0.7 < written / planned["bytes_needed"] < 1.3
    pairs = run(make_settings(pairs=10**5), workspace).metrics["pairs"]
    assert 0.5 < planned["pairs_in_texts"] / pairs < 2


def test_a_plan_with_a_time_reads_the_models_and_leaves_nothing(
    make_settings, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(pairs=1000, shard_pairs=1000)
    planned = plan(settings, workspace)
    assert planned.items() >= {**estimate(settings, workspace), "bytes_free": planned["bytes_free"]}.items()
    assert planned["rehearsal"]["rehearsed"] == {"pairs": 1000, "pairs planned": 1000}
    assert planned["rehearsal"]["time"]["parts"].keys() >= {"plan", "capture A", "capture B"}
    assert workspace.artifacts() == []
    monkeypatch.setattr("modeldiff.harvest.run.free_memory", lambda: 1000)
    assert plan(settings, workspace)["no_time"] == "the models do not fit into memory here (1.0 kB free)"


def test_too_little_disk_is_refused_before_a_model_is_loaded(make_settings, workspace: Workspace, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr("modeldiff.harvest.run.load_model", None)
    assert not estimate(make_settings(), workspace)["fits"]
    with pytest.raises(MachineError, match=r"needs .* on disk, 1.0 kB are free"):
        run(make_settings(), workspace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_a": 3}, r"--layer-a 3 is out of range: model a has blocks 0 to 2"),
        ({"layer_b": 9}, r"--layer-b 9 is out of range: model b has blocks 0 to 1"),
        ({"model_a": "no/such/folder"}, "no model folder no/such/folder"),
        ({"texts": ("none.txt",)}, "there is no text file none.txt"),
        ({"texts": ()}, "--texts is missing"),
        ({"model_b": None}, "--model-b is missing"),
    ],
)
def test_wrong_settings_are_one_line(make_settings, workspace: Workspace, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(make_settings(**changes), workspace)
    assert "\n" not in str(caught.value)
    assert workspace.partials() == []
