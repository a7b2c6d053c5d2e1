"""A sweep: every combination, each the crosscoder that `train` makes alone, and what happens when one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeldiff.cli.main import run as run_command
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training import run as run_module
from modeldiff.crosscoder.training.run import run as train
from modeldiff.crosscoder.training.sweep import combined, differing, run
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import InputError
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.stage import CheckpointClock
from tests.crosscoder.planted import plant
from tests.made_activations import make_activations

COMMON: dict[str, Any] = {"steps": 8, "batch": 64, "exclusive": 0.125, "device": "cpu"}
WORDS = [word for name, value in COMMON.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def _figure_in_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "training_figure", lambda *_: b"\x89PNG")


def with_activations(folder: Path) -> Workspace:
    workspace, planted = Workspace(folder), plant(1500)
    make_activations(workspace, planted.x_a, planted.x_b)
    return workspace


def same(one: Artifact, other: Artifact) -> bool:
    return (one.manifest.fingerprint, one.manifest.digest, one.metrics) == (
        other.manifest.fingerprint, other.manifest.digest, other.metrics
    )  # fmt: skip


def test_every_combination_is_there_once() -> None:
    made = combined({"k": (2, 3, 2), "lr": (), "seed": (0, 1)}, device="cpu")
    assert [(one.k, one.seed, one.lr, one.device) for one in made] == [
        (2, 0, None, "cpu"), (2, 1, None, "cpu"), (3, 0, None, "cpu"), (3, 1, None, "cpu")
    ]  # fmt: skip
    assert differing(made) == ["k", "seed"]
    assert combined({}) == [TrainSettings()]
    with pytest.raises(InputError, match="--k must be at most the number of features"):
        combined({"k": (2, 50), "features": (40,)})


def test_each_is_to_the_bit_what_it_is_alone_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = combined(
        {"features": (40, 56), "architecture": ("dfc", "standard"), "k": (2,), "seed": (0, 1)}, **COMMON
    )
    together, alone, left = with_activations(tmp_path / "w"), with_activations(tmp_path / "v"), 8 * 8
    update, updates = Trainer.update, 0

    def counted(self: Trainer, *x: Any) -> Any:
        nonlocal updates
        if updates == 21:  # of the third training
            raise KeyboardInterrupt
        updates += 1
        return update(self, *x)

    monkeypatch.setattr(Trainer, "update", counted)
    monkeypatch.setattr(CheckpointClock, "now", lambda _: True)
    with pytest.raises(KeyboardInterrupt):
        run(trainings, together)
    assert len(together.artifacts("crosscoder")) == 2
    updates = 21 - left
    made = run(trainings, together)
    assert updates == 0, "no step was made twice"
    monkeypatch.setattr(Trainer, "update", update)
    for one, artifact in zip(trainings, made, strict=True):
        assert isinstance(artifact, Artifact)
        assert same(artifact, train(one, alone))
        assert train(one, together).ref == artifact.ref, "`train` finds it"


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = with_activations(tmp_path / "w")
    args = ["--workspace", str(workspace.folder), "sweep", *WORDS, "--features", "40", "--lr", "1e-3", "1e38", "2e-3"]
    with pytest.raises(SystemExit, match="1"):
        run_command([*args, "--k", "2", "--json"])
    said = capsys.readouterr()
    rows = json.loads(said.out)["trainings"]
    assert [(row["ref"], row["settings"]) for row in rows] == [
        ("crosscoder:1", {"lr": 1e-3}), (None, {"lr": 1e38}), ("crosscoder:2", {"lr": 2e-3})
    ]  # fmt: skip
    assert "training diverged" in rows[1]["failed"]
    assert rows[2]["held_out"] == workspace.find("crosscoder", 2).metrics["held_out"]
    assert "1 of 3 trainings failed, the first one: training diverged" in said.err.splitlines()[-1]


def test_what_does_not_fit_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = with_activations(tmp_path / "w")
    monkeypatch.setattr(Trainer, "update", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(InputError, match="--architecture dsf-vectors needs models of equal width"):
        run(combined({"architecture": ("standard", "dsf-vectors"), "features": (40,), "k": (2,)}, **COMMON), workspace)


def test_the_table_and_a_file_with_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options win over the file; what was made before answers."""
    workspace = with_activations(tmp_path / "w")
    (tmp_path / "s.yaml").write_text("features: [40, 56]\nk: 2\nseed: [0, 1]\nlr: 1e-3\ndevice: cpu\n")
    args = ["--workspace", str(workspace.folder), "sweep", *WORDS, "--config", str(tmp_path / "s.yaml"), "--seed", "3"]
    for wanted in ("is ready", "is up to date"):
        with pytest.raises(SystemExit, match="0"):
            run_command(args)
        said = capsys.readouterr()
        assert [f"crosscoder:{number} {wanted}" in said.err for number in (1, 2, 3)] == [True, True, False]
        _title, names, first, second = said.out.splitlines()
        assert names.split() == ["crosscoder", "features", "FVE", "A", "FVE", "B", "L0", "dead"]
        held_out = workspace.find("crosscoder", 1).metrics["held_out"]
        assert first.split()[:3] == ["crosscoder:1", "40", f"{held_out['fve']['a']:.3f}"]
        assert second.split()[:2] == ["crosscoder:2", "56"]
    assert workspace.find("crosscoder").settings["seed"] == 3
