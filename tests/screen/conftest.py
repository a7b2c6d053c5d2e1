"""Screened pairs, each harvested once, in a workspace of the test's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modeldiff.screen.run import run
from modeldiff.workspace import Workspace
from tests.screen.made import DOCUMENTS, Made, crosscoder, make, save_model, settings


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between a test and its own server, no key, and no waiting before a call is repeated."""
    monkeypatch.setenv("no_proxy", "*")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("modeldiff.judge.openai._FIRST_WAIT", 0.0)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "t.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def _models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {side: save_model(folder / side, DOCUMENTS, seed) for seed, side in enumerate("ab")}


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory, _models: dict[str, Path], texts: Path) -> Made:
    return make(tmp_path_factory.mktemp("pair") / "ws", _models, texts, crosscoder())


@pytest.fixture(scope="session")
def _screened(tmp_path_factory: pytest.TempPathFactory, _pair: Made) -> Made:
    made = own_copy(_pair, tmp_path_factory.mktemp("screened"))
    run(settings(), made.workspace)
    return made


@pytest.fixture(scope="session")
def _twins(tmp_path_factory: pytest.TempPathFactory, _models: dict[str, Path], texts: Path) -> Made:
    models = dict.fromkeys("ab", _models["a"])
    return make(tmp_path_factory.mktemp("twins") / "ws", models, texts, crosscoder(alike=True))


@pytest.fixture
def pair(_pair: Made, tmp_path: Path) -> Made:
    """Two models that differ; nothing is measured yet."""
    return own_copy(_pair, tmp_path)


@pytest.fixture
def screened(_screened: Made, tmp_path: Path) -> Made:
    """The same, with `screen:1` by `settings()`."""
    return own_copy(_screened, tmp_path)


@pytest.fixture
def twins(_twins: Made, tmp_path: Path) -> Made:
    """The same model twice, with the same directions on both sides."""
    return own_copy(_twins, tmp_path)


def own_copy(made: Made, folder: Path) -> Made:
    shutil.copytree(made.workspace.folder, folder / "ws")
    workspace = Workspace(folder / "ws")
    return Made(workspace, workspace.find("activations"), workspace.find("crosscoder"))
