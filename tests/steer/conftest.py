"""Two tiny models and a workspace for transfers; the other files have their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.steer.made_transfer import Made, make
from tests.tiny_models import CHAT_TEMPLATE, save_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {
        "a": save_tiny(place / "a", "gpt2", width=32),
        "b": save_tiny(place / "b", "llama", width=16, seed=1),
        "chat": save_tiny(place / "chat", "llama", width=16, seed=1, chat_template=CHAT_TEMPLATE),
    }


@pytest.fixture
def made(tmp_path: Path, folders: dict[str, Path]) -> Made:
    return make(tmp_path, (str(folders["a"]), str(folders["b"])))
