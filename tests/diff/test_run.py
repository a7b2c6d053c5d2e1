"""All stages in one call, on two tiny models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from modeldiff.catalogue.table import FeatureTable
from modeldiff.cli.main import run as run_command
from modeldiff.diff import plan as plan_module
from modeldiff.diff.run import Diff, run
from modeldiff.diff.settings import DiffSettings
from modeldiff.diff.steering import push_each
from modeldiff.lm import harvested
from modeldiff.lm.load import LanguageModel, load_model
from modeldiff.lm.ref import ModelRef
from modeldiff.workspace import Workspace
from modeldiff.workspace.rehearsal import rehearse
from tests.contrast.conftest import make_texts
from tests.processes import two
from tests.tiny_models import save_tiny

OPTIONS = ["--pairs", "2400", "--features", "32", "--k", "4", "--steps", "10", "--places", "40", "--no-cause"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a and b, and texts."""
    made, texts = tmp_path_factory.mktemp("diff"), make_texts(120)
    save_tiny(made / "a", "gpt2", texts=texts, width=16, layers=2)
    save_tiny(made / "b", "llama", texts=texts[:20], width=24, vocab_size=400, layers=2, seed=1)
    lines = [json.dumps({"text": text, "source": ("web", "code")[i % 2]}) for i, text in enumerate(texts)]
    (made / "texts.jsonl").write_text("\n".join(lines))
    return made


def settings_of(folder: Path) -> DiffSettings:
    return DiffSettings(
        model_a=str(folder / "a"), model_b=str(folder / "b"), texts=(str(folder / "texts.jsonl"),), pairs=2400,
        features=32, k=4, steps=10, places=40, cause=False, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(folder: Path) -> Diff:
    return run(settings_of(folder), Workspace(folder / "ws"), name="mine")


def test_every_stage_is_made_from_those_before(done: Diff) -> None:
    made = {kind: one.manifest for kind, one in vars(done).items()}
    assert [one.ref for one in vars(done).values()] == [f"{kind}:1" for kind in made]
    for one, source in (
        ("crosscoder", "activations"), ("features", "crosscoder"), ("stitch", "activations"),
        ("contrast", "continuations"), ("contrast", "crosscoder"), ("contrast", "features"),
        ("report", "contrast:1"), ("report", "features:1"), ("report", "stitch:1"),
    ):  # fmt: skip
        assert made[one].inputs[source].digest == made[source.partition(":")[0]].digest
    assert made["contrast"].name == "mine"
    assert made["activations"].metrics["pairs"] == 2400


def test_the_same_command_answers_at_once_and_prints_the_list(done: Diff, folder: Path, capsys) -> None:
    args = ["diff", "--model-a", str(folder / "a"), "--model-b", str(folder / "b"), *OPTIONS, "--device", "cpu"]
    args = ["--workspace", str(folder / "ws"), *args, "--texts", str(folder / "texts.jsonl")]
    with pytest.raises(SystemExit, match="0"):
        run_command([*args, "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["ref"] == done.contrast.ref
    assert found["found"] == 0
    assert found["differences"] == []
    for ref in ("activations:1", "crosscoder:1", "features:1", "stitch:1", "continuations:1", "contrast:1", "report:1"):
        assert f"{ref} is up to date" in said.err
    assert found["page"] == str(done.report.file("report.html"))
    assert "costs: about" in said.err
    assert [line[:3] for line in said.err.splitlines() if line[1:3] == "/6"] == [f"{i}/6" for i in range(1, 7)]
    with pytest.raises(SystemExit, match="0"):
        run_command(args)
    assert capsys.readouterr().out.startswith("Nothing beyond chance")


def once(rehearse: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The same, but for the time that it takes the second time."""
    found: list[dict[str, Any]] = []

    def rehearsed(*given: Any) -> dict[str, Any]:
        if not found:
            found.append(rehearse(*given))
        return copy.deepcopy(found[0])

    return rehearsed


def test_a_plan_is_of_every_stage_and_leaves_nothing(folder: Path, done: Diff, monkeypatch, capsys) -> None:
    there = [one.ref for one in Workspace(folder / "ws").artifacts()]
    for name, value in {"_PAIRS": 1200, "_FIRST_PAIRS": 800, "_STEPS": 4}.items():
        monkeypatch.setattr(plan_module, name, value)
    monkeypatch.setattr(plan_module, "rehearse", once(rehearse))
    args = ["diff", "--model-a", str(folder / "a"), "--model-b", str(folder / "b"), *OPTIONS, "--device", "cpu"]
    args = ["--workspace", str(folder / "ws"), *args, "--texts", str(folder / "texts.jsonl"), "--plan"]
    with pytest.raises(SystemExit, match="0"):
        run_command([*args, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["features"], found["steps"], found["places"]) == (2400, 32, 10, 40)
    assert found["rehearsal"]["rehearsed"]["pairs"] == 1200
    stages = found["rehearsal"]["stages"]
    assert list(stages) == list(vars(done))
    for kind, artifact in vars(done).items():
        assert stages[kind]["peak_memory"] > 0
        if kind in ("activations", "crosscoder", "features"):  # the others' texts are none of a short run
            assert stages[kind]["written"] == pytest.approx(artifact.size, rel=0.4)
    time = found["rehearsal"]["time"]
    assert time["run"] == pytest.approx(sum(time["parts"].values()) + time["rest"])
    assert sum(one["time"] for one in stages.values()) <= time["run"]
    assert set(found["at_most"]) == {"cause", "steering"}
    assert [one.ref for one in Workspace(folder / "ws").artifacts()] == there
    with pytest.raises(SystemExit, match="0"):
        run_command(args)
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in stages)
    assert max(map(len, shown.splitlines())) <= 80


def test_activations_and_training_have_to_fit_on_the_disk_together(
    folder: Path, done: Diff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate, settings = plan_module.estimate, settings_of(folder)

    def room_for_activations(*how: Any) -> dict[str, Any]:
        seen = estimate(*how)
        return seen | {"bytes_free": seen["bytes_needed"]}

    monkeypatch.setattr(plan_module, "why_not_timed", lambda _: "a test")
    monkeypatch.setattr(plan_module, "estimate", room_for_activations)
    (problem,) = plan_module.plan(settings, Workspace(tmp_path / "ws"))["problems"]
    assert "needed for activations and training" in problem
    assert done.activations
    there = Workspace(folder / "ws")
    assert plan_module.plan(settings, there)["problems"] == [], "the activations are there"


def test_a_list_is_pushed_with_each_model_loaded_once(
    folder: Path, done: Diff, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(ref: ModelRef, *how: Any) -> LanguageModel:
        loaded.append(Path(ref.name).name)
        return load_model(ref, *how)

    monkeypatch.setattr(harvested, "load_model", load)
    fires_F = FeatureTable(done.features).statistics["firing_count"] > 0
    shared = np.flatnonzero(fires_F & (FeatureTable(done.features).partition_F == "shared"))[:4].tolist()
    found: dict[int, Literal["A", "B"]] = dict(zip(shared, ("A", "B", "A", "B"), strict=True))
    workspace = Workspace(folder / "ws")
    made = push_each(settings_of(folder), found, done.continuations, [], done.features, workspace)
    assert loaded == ["a", "b"]
    assert {one.settings["feature"]: one.settings["model"] for one in made} == found
    for one in made:
        workspace.remove(one.folder)


def test_two_processes_share_what_can_be_shared_and_the_first_does_the_rest(
    folder: Path, done: Diff, tmp_path: Path
) -> None:
    models = ["--model-a", str(folder / "a"), "--model-b", str(folder / "b"), "--texts", str(folder / "texts.jsonl")]
    args = ["--workspace", str(tmp_path / "ws"), "diff", *models, *OPTIONS, "--device", "cpu"]
    (code, lines), other = two(args, tmp_path, {})
    assert (code, other) == (0, (0, []))
    assert sum(line.startswith("Nothing beyond chance") for line in lines) == 1
    made = {one.kind: one.manifest for one in Workspace(tmp_path / "ws").artifacts()}
    assert made.keys() == vars(done).keys()
    shared = {kind for kind, manifest in made.items() if manifest.environment.get("processes") == 2}
    assert shared == {"activations", "crosscoder", "features", "continuations"}
    for kind in ("activations", "stitch", "continuations"):  # the training adds in another order
        assert made[kind].digest == vars(done)[kind].manifest.digest
