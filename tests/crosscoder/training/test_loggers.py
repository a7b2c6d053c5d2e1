"""`--log`: what a logger is told, that a run which goes on is the same there, and that none stops a training."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training import run as run_module
from modeldiff.crosscoder.training.run import run
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import InputError
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.stage import CheckpointClock
from tests.crosscoder.made import log_of
from tests.crosscoder.planted import plant
from tests.made_activations import make_activations

SHORT: dict[str, Any] = {"features": 40, "exclusive": 0.125, "k": 2, "steps": 20, "batch": 64, "device": "cpu"}
LOGGERS = ("tensorboard", "wandb", "trackio")


class Fake(ModuleType):
    """The three packages at once: what they were told, in order."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.fails: tuple[str, ...] = ()

    def _may_fail(self, what: str) -> None:
        print(f"{what}!")  # noqa: T201
        if what in self.fails:
            raise ConnectionError(f"no network for {what}\nand more")

    def init(self, **about: Any) -> None:
        self.begun.append(about)
        self._may_fail("init")

    def SummaryWriter(self, folder: Path, purge_step: int) -> Fake:
        self.init(folder=folder, purge_step=purge_step)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._may_fail("log")
        self.logged.append((step, values))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if not self.logged or self.logged[-1][0] != step:
            self.log({}, step)
        self.logged[-1][1][name] = value

    def finish(self) -> None:
        self._may_fail("finish")
        self.finished += 1

    close = finish


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake("fake")
    for name in (*LOGGERS, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr(run_module, "training_figure", lambda *_: b"\x89PNG")
    return made


def trained(workspace: Workspace, log: Any, **settings: Any) -> Artifact:
    if not workspace.folder.exists():
        planted = plant(2000)
        make_activations(workspace, planted.x_a, planted.x_b)
    return run(TrainSettings(**{**SHORT, **settings}, log=log), workspace)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_is_told_what_training_jsonl_and_the_manifest_say(
    name: str, workspace: Workspace, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = trained(workspace, name)
    *steps, (last, held_out) = fake.logged
    lines = log_of(artifact)
    assert [step for step, _ in steps] == [line["step"] for line in lines]
    for (_, values), line in zip(steps, lines, strict=True):
        assert (values["loss"], values["fve/a"], values["l0/shared"]) == (
            line["loss"], line["fve"]["a"], line["l0"]["shared"]
        )  # fmt: skip
        assert all(isinstance(value, int | float) for value in values.values())
    assert (last, held_out["held_out/fve/b"]) == (20, artifact.metrics["held_out"]["fve"]["b"])
    assert (len(fake.begun), fake.finished) == (1, 1)
    assert capsys.readouterr().out == "", "what a logger prints is no result"


@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_that_goes_on_is_the_same_run_there(
    name: str, workspace: Workspace, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def killed(self: Trainer, *x: Any) -> Any:
        if self.step == 11:
            raise KeyboardInterrupt
        return update(self, *x)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", killed)
        patch.setattr(CheckpointClock, "now", lambda _: True)
        with pytest.raises(KeyboardInterrupt):
            trained(workspace, name)
    trained(workspace, name)
    first, second = fake.begun
    if name == "tensorboard":
        assert first["folder"] == second["folder"]
        assert (first["purge_step"], second["purge_step"]) == (0, 11)
    else:
        assert first == second
        assert first["resume"] == "allow"
        assert first["config"]["features"] == 40
        assert ("id" in first) == (name == "wandb")
    trained(workspace, name, seed=1)
    assert fake.begun[2].get("name") != first.get("name") or fake.begun[2].get("folder") != first.get("folder")


@pytest.mark.parametrize("fails", [("init",), ("log",), ("finish",), ("init", "log", "finish")])
def test_a_logger_that_fails_says_so_once_and_takes_nothing_with_it(
    fails: tuple[str, ...], workspace: Workspace, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fails = fails
    artifact = trained(workspace, "wandb")
    said = capsys.readouterr().err
    assert said.count("--log wandb failed") == said.count(f"(no network for {fails[0]})") == 1
    assert len(log_of(artifact)) == 20
    assert trained(workspace, None).ref == artifact.ref, "how it was followed makes no other artifact"
    assert run(TrainSettings(**SHORT), workspace, force=True).manifest.digest == artifact.manifest.digest


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_said_before_training(
    name: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(Trainer, "update", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(InputError, match=rf"--log {name} needs a package: run `pip install 'modeldiff\[{name}\]'`"):
        trained(workspace, name)
