"""The stage: planted truth is found, an interrupted run gives the same bytes, and what goes wrong is one line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.crosscoder import load
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training import run as run_module
from modeldiff.crosscoder.training.checkpoint import read_checkpoint
from modeldiff.crosscoder.training.evaluation import evaluate
from modeldiff.crosscoder.training.run import run
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import InputError, MachineError
from modeldiff.splits import hold_out_blocks
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.ranks import Ranks
from modeldiff.workspace.stage import CheckpointClock
from tests.crosscoder.made import log_of
from tests.crosscoder.planted import Planted, plant, recovered
from tests.made_activations import make_activations

SHORT: dict[str, Any] = {
    "features": 40, "exclusive": 0.125, "k": 2, "steps": 40, "batch": 64, "audits": 0, "device": "cpu"
}  # fmt: skip
# Five audits, each of the last 8 batches before it.
AUDITED: dict[str, Any] = {**SHORT, "steps": 160, "audits": 5, "audit_pairs": 512}


@pytest.fixture(scope="module", autouse=True)
def _figure_in_a_word() -> Iterator[None]:
    """Drawing takes longer than these runs; in its place, bytes that depend on the same. test_figure.py draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "training_figure", lambda *drawn: b"\x89PNG" + json.dumps(drawn).encode())
        yield


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(6000)


def workspace_with(folder: Path, planted: Planted, **options: Any) -> Workspace:
    workspace = Workspace(folder)
    make_activations(workspace, planted.x_a, planted.x_b, 2000, **options)
    return workspace


def content(artifact: Artifact) -> dict[str, bytes]:
    """The files that must not depend on when a run was interrupted."""
    return {name: (artifact.folder / name).read_bytes() for name in artifact.files() if not name.startswith("logs/")}


@pytest.fixture(scope="module")
def trained(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    workspace = workspace_with(tmp_path_factory.mktemp("t") / "w", planted, models=("one", "two"), layers=(2, 3))
    return run(TrainSettings(**{**SHORT, "steps": 300, "batch": 256}), workspace)


def test_planted_concepts_are_recovered(trained: Artifact, planted: Planted) -> None:
    crosscoder, concepts = load(trained), planted.concepts
    dec_a, dec_b = crosscoder.w_dec_a.detach(), crosscoder.w_dec_b.detach()
    assert recovered(concepts["a"], dec_a)[3:21].all(), "shared ones, in A"
    assert recovered(concepts["b"], dec_b)[3:21].all(), "shared ones, in B"
    by_exclusive = recovered(concepts["a"][:3], dec_a[crosscoder.slices["A"]]).sum()
    by_exclusive += recovered(concepts["b"][21:], dec_b[crosscoder.config.n_shared :]).sum()
    assert by_exclusive >= 3, "half of what only one model has, by its exclusive features"
    held_out = trained.metrics["held_out"]
    for side in "ab":
        assert held_out["fve"][side] > 0.9
        assert held_out["fve_shared"][side] < held_out["fve"][side]
        assert held_out["gain_exclusive"][side] == held_out["fve"][side] - held_out["fve_shared"][side]


def test_files_and_config(trained: Artifact, planted: Planted) -> None:
    files = ["config.json", "figures/training.png", "logs/throughput.jsonl", "model.safetensors", "training.jsonl"]
    assert trained.files() == files
    assert trained.metrics["threshold"] == load(trained).config.threshold > 0
    assert trained.metrics["held_out"]["l0"] == pytest.approx(2, rel=0.2), "the inference threshold keeps about k"
    crosscoder = load(trained)
    config = crosscoder.config
    assert (config.model_a, config.layer_a, config.model_b, config.layer_b) == ("one", 2, "two", 3)
    for x, scale in ((planted.x_a, config.scale_a), (planted.x_b, config.scale_b)):
        assert float((x * scale).norm(dim=1).median()) == pytest.approx(18**0.5, rel=1e-3)
    lines = log_of(trained)
    assert [line["step"] for line in lines][:2] == [0, 1]
    assert lines[-1]["step"] == 299
    assert lines[-1]["loss"] < lines[0]["loss"] / 5
    figure = (trained.folder / "figures/training.png").read_bytes()
    assert b"40 features (A 5, shared 30, B 5), k 2, on activations:1" in figure


def test_the_quality_is_that_of_the_crosscoder_that_is_loaded(planted: Planted, tmp_path: Path) -> None:
    """Training multiplies in bfloat16 here, which would give others."""
    workspace = workspace_with(tmp_path, planted)
    made = run(TrainSettings(**SHORT, precision="bfloat16"), workspace)
    store = ActivationStore(workspace.find("activations"))
    _, held_out = hold_out_blocks(store, TrainSettings(**SHORT).holdout)
    found = evaluate(load(made), store, held_out, TrainSettings(**SHORT).outlier_factor)
    assert json.loads(json.dumps(found)) == made.metrics["held_out"]


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def uninterrupted(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run(TrainSettings(**SHORT), workspace_with(tmp_path_factory.mktemp("u") / "w", planted))


@pytest.fixture(scope="module")
def few() -> Planted:
    """Fewer exclusive concepts than there are slots for."""
    return plant(6000, exclusive=2)


@pytest.fixture(scope="module")
def audited(few: Planted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, str]:
    """What an uninterrupted run with audits makes, and what it says."""
    workspace = workspace_with(tmp_path_factory.mktemp("a") / "w", few)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        return run(TrainSettings(**AUDITED), workspace), told.getvalue()


def run_with_kills(
    settings: dict[str, Any], kills: tuple[int, ...], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> Artifact:
    """Kill a run before the steps given, continue it every time, and let it finish."""
    update, evaluate, kill_at = Trainer.update, run_module.evaluate, -1
    asked = 0

    def live_until(step: int) -> None:
        if step == kill_at:
            raise KilledError

    def killed_update(self: Trainer, *x: torch.Tensor) -> Any:
        live_until(self.step)
        return update(self, *x)

    def killed_evaluate(*args: Any) -> Any:
        live_until(settings["steps"])
        return evaluate(*args)

    def now(self: CheckpointClock) -> bool:
        nonlocal asked
        asked += 1
        return asked % 4 == 0  # some steps are lost and done again

    monkeypatch.setattr(Trainer, "update", killed_update)
    monkeypatch.setattr(run_module, "evaluate", killed_evaluate)
    monkeypatch.setattr(CheckpointClock, "now", now)
    for kill_at in kills:  # noqa: B007
        with pytest.raises(KilledError):
            run(TrainSettings(**settings), workspace)
    kill_at = -1
    return run(TrainSettings(**settings), workspace)


def assert_same(artifact: Artifact, other: Artifact) -> None:
    assert content(artifact) == content(other)
    assert artifact.manifest.digest == other.manifest.digest
    assert artifact.metrics == other.metrics


@pytest.mark.parametrize("kills", [(0,), (1,), (17,), (39,), (40,), (5, 20, 21)])  # (40,): after the last step
def test_resumed_equals_uninterrupted_bit_for_bit(
    kills: tuple[int, ...], planted: Planted, uninterrupted: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = run_with_kills(SHORT, kills, workspace_with(tmp_path / "w", planted), monkeypatch)
    assert_same(artifact, uninterrupted)


# Between the first two audits; in the middle of collecting for the third, after it, and before the last.
@pytest.mark.parametrize("moments", [((0, 5),), ((2, -3), (2, 1), (-1, -1))])
def test_resumed_equals_uninterrupted_also_across_audits(
    moments: tuple[tuple[int, int], ...],
    few: Planted,
    audited: tuple[Artifact, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Moments are numbers of audits, and how many steps after them the run is killed."""
    lines = log_of(audited[0])
    audits = [line["step"] for line in lines if line["audit"]]
    assert len(audits) == 5
    kills = tuple(audits[number] + after for number, after in moments)
    at_kill = lines[kills[0]]["features"]
    for part in (lines[: kills[0] + 1], lines[kills[0] + 1 :]):
        reports = [line["audit"][side] for line in part if line["audit"] for side in ("A", "B")]
        assert any(report["moved"] or report["planted"] for report in reports), "before the kill, and after it"
    resumed: list[dict[str, int]] = []

    def read(path: Path, trainer: Trainer) -> str:
        log = read_checkpoint(path, trainer)
        resumed.append(trainer.crosscoder.sizes)
        return log

    monkeypatch.setattr("modeldiff.crosscoder.training.checkpoint.read_checkpoint", read)
    artifact = run_with_kills(AUDITED, kills, workspace_with(tmp_path / "w", few), monkeypatch)
    assert resumed[0] == at_kill
    assert_same(artifact, audited[0])


def test_audits_are_told_and_summed_up(audited: tuple[Artifact, str]) -> None:
    artifact, told = audited
    reports = [line["audit"] for line in log_of(artifact) if line["audit"]]
    metrics, sizes = artifact.metrics["audit"], artifact.metrics["features"]
    assert metrics["audits"] == len(reports) == told.count("audit at step ") == 5
    for side in ("A", "B"):
        for what in ("moved", "promoted", "planted"):
            assert metrics[side][what] == sum(report[side][what] for report in reports)
        for what in ("kept", "unjudged"):
            assert metrics[side][what] == reports[-1][side][what]
        assert sizes[side] == metrics[side]["kept"] + reports[-1][side]["promoted"]
    assert metrics["A"]["moved"] + metrics["B"]["moved"] > 0
    assert metrics["A"]["planted"] + metrics["B"]["planted"] > 0
    assert load(artifact).sizes == sizes
    assert f"A {reports[0]['A']['kept']} kept" in told
    assert f"after 5 audits: 40 features (A {sizes['A']}, shared {sizes['shared']}, B {sizes['B']})" in told


def test_settings_that_cannot_change_the_result_answer_from_the_cache(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = workspace_with(tmp_path / "w", planted)
    few: dict[str, Any] = {**SHORT, "steps": 3}
    first = run(TrainSettings(**few), workspace)
    again = run(TrainSettings(**{**few, "device": "auto"}, checkpoint_seconds=0, activations="1"), workspace)
    assert again.ref == first.ref
    assert "crosscoder:1 is up to date" in capsys.readouterr().err
    other = run(TrainSettings(**few, seed=1), workspace)
    assert other.ref == "crosscoder:2"
    assert "seed changed 0 -> 1" in capsys.readouterr().err


def test_no_activations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `modeldiff harvest` first"):
        run(TrainSettings(), Workspace(tmp_path / "w"))


def test_too_little_disk_is_refused_before_the_first_step(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_with(tmp_path, planted)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(Trainer, "update", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(MachineError, match=r"a training of 40 features needs .* on disk, 1.0 kB are free"):
        run(TrainSettings(**SHORT), workspace)


@pytest.mark.parametrize(("here", "device"), [(3, "auto"), (2, "cuda:1"), (2, "auto"), (2, "cuda")])
def test_processes_that_would_share_a_gpu_are_refused(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: int, device: str
) -> None:
    workspace, ours = workspace_with(tmp_path / "w", planted), Ranks(1, here, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(run_module, "launched", lambda: (ours, here))
    settings = TrainSettings(**SHORT | {"device": device})
    if here == 2 and ":" not in device:
        prepared, _ = run_module.prepare(settings, workspace, ours)
        assert prepared.resolved == {"precision": "bfloat16"}
        return
    with pytest.raises(InputError, match=f"each of the {here} processes on this machine needs a GPU of its own"):
        run_module.prepare(settings, workspace, ours)
