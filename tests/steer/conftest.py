"""Two tiny models and a workspace."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.workspace import Artifact
from tests.steer.made import Made, make
from tests.tiny_models import CHAT_TEMPLATE, save_tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {
        "a": save_tiny(place / "a", "gpt2", width=32),
        "b": save_tiny(place / "b", "llama", width=16, seed=1),
        "chat": save_tiny(place / "chat", "llama", width=16, seed=1, chat_template=CHAT_TEMPLATE),
    }


@pytest.fixture
def made(tmp_path: Path, folders: dict[str, Path]) -> Made:
    """No stitch yet."""
    return make(tmp_path / "ws", (str(folders["a"]), str(folders["b"])))


@pytest.fixture
def stitch(made: Made) -> Artifact:
    return run_stitch(StitchSettings(device="cpu", outlier_factor=0.0), made.workspace)
