"""Two tiny models of different architecture, width and tokenizer; texts, documents and continuations of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.contrast.continuations import run as run_continuations
from modeldiff.contrast.settings import ContinuationsSettings
from modeldiff.lm.load import ModelRef, load_model, load_tokenizer
from modeldiff.lm.model import LanguageModel
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace import Artifact, Workspace
from tests.tiny_models import save_tiny


def make_texts(count: int = 40, seed: int = 0) -> list[str]:
    letters = random.Random(0)
    vocabulary = ["".join(letters.choices("abcdefgh", k=letters.randint(2, 7))) for _ in range(80)]
    draw = random.Random(seed)
    return [f"{i}: " + " ".join(draw.choices(vocabulary, k=draw.randint(20, 40))) + ", don't!" for i in range(count)]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    texts = make_texts()
    other = {"width": 24, "vocab_size": 400, "seed": 1, "add_bos": True}
    return {
        "a": save_tiny(folder / "a", "gpt2", texts=texts, width=16, layers=2),
        "b": save_tiny(folder / "b", "llama", texts=texts[:20], layers=2, **other),
    }


@pytest.fixture(scope="session")
def lms(models: dict[str, Path]) -> dict[str, LanguageModel]:
    cpu = torch.device("cpu")
    return {side: load_model(ModelRef(str(folder)), cpu, torch.float32) for side, folder in models.items()}


@pytest.fixture(scope="session")
def readers(models: dict[str, Path]) -> dict[str, Reader]:
    return {side: Reader(load_tokenizer(ModelRef(str(folder)))) for side, folder in models.items()}


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 records of two sources."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [json.dumps({"text": text, "source": ("web", "code")[i % 2]}) for i, text in enumerate(make_texts())]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


@pytest.fixture(scope="session")
def make_settings(models: dict[str, Path], texts_file: Path) -> Callable[..., ContinuationsSettings]:
    """Settings of few and short continuations, with changes."""

    def make(**changes: Any) -> ContinuationsSettings:
        given: dict[str, Any] = {f"model_{side}": str(folder) for side, folder in models.items()}
        given |= {"texts": (str(texts_file),), "places": 60, "tokens": 4, "device": "cpu"}
        return ContinuationsSettings(**{**given, **changes})

    return make


@pytest.fixture(scope="session")
def continued(
    tmp_path_factory: pytest.TempPathFactory, make_settings: Callable[..., ContinuationsSettings]
) -> Artifact:
    """Continuations as `make_settings` asks for, in a workspace of their own."""
    return run_continuations(make_settings(), Workspace(tmp_path_factory.mktemp("continued") / "ws"))
