"""Two tiny models and a workspace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.lm.model import LanguageModel
from modeldiff.steer import sweep
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
def made_with_chat(tmp_path: Path, folders: dict[str, Path]) -> Made:
    """Model B has a chat format."""
    return make(tmp_path / "ws", (str(folders["a"]), str(folders["chat"])))


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """The prompts that a sweep puts to models from now on; after so many of them it is interrupted, once."""
    written: list[str] = []
    generate_tokens = sweep.generate_tokens

    def start(count: int) -> list[str]:
        at = [count]

        def dying(lm: LanguageModel, prompts: list[str], **options: Any) -> Any:
            if at == [len(written)]:
                at.clear()
                raise KeyboardInterrupt
            written.extend(prompts)
            return generate_tokens(lm, prompts, **options)

        monkeypatch.setattr(sweep, "generate_tokens", dying)
        return written

    return start


@pytest.fixture
def stitch(made: Made) -> Artifact:
    return run_stitch(StitchSettings(device="cpu", outlier_factor=0.0), made.workspace)
