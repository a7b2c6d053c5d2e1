"""Tiny model folders and loaded models, made once per session, and no way to the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from modeldiff.lm.load import LanguageModel, ModelRef, load_model
from tests.tiny_models import ARCHITECTURES, CHAT_TEMPLATE, save_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    # The environment variable is read at import, which another room's tests may have done before.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The saved tiny model of an architecture. Copy it before changing it."""

    @cache
    def make(arch: str) -> Path:
        # Widths differ, so that a mix-up of two models would show.
        width = 32 if arch != "gpt_oss" else 36
        return save_tiny(tmp_path_factory.mktemp("models") / arch, arch, width=width, chat_template=CHAT_TEMPLATE)

    return make


@pytest.fixture(scope="session")
def lm_of(folder_of: Callable[[str], Path]) -> Callable[[str], LanguageModel]:
    """The loaded tiny model of an architecture."""

    @cache
    def make(arch: str) -> LanguageModel:
        return load_model(ModelRef(str(folder_of(arch))), torch.device("cpu"), torch.float32)

    return make


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest, lm_of: Callable[[str], LanguageModel]) -> LanguageModel:
    return lm_of(request.param)


@pytest.fixture
def own_lm(folder_of: Callable[[str], Path]) -> LanguageModel:
    """A model that a test may change."""
    return load_model(ModelRef(str(folder_of("llama"))), torch.device("cpu"), torch.float32)


@pytest.fixture
def llama(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """The folder of a model that a test may change."""
    return Path(shutil.copytree(folder_of("llama"), tmp_path / "llama"))


@pytest.fixture
def small_on_the_hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local cache of the hub that holds COMMIT of the model org/small."""
    repo = tmp_path / "cache" / "models--org--small"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copytree(llama, repo / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
