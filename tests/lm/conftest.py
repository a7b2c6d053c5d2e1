"""Tiny model folders and loaded models, made once per session, and no way to the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from modeldiff.lm.load import LanguageModel, ModelRef, load_model
from tests.tiny_models import CHAT_TEMPLATE, save_tiny


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


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Addresses that something tried to reach, with the hub's offline mode switched off."""
    tried: list[object] = []

    def refuse(*args: object, **_kwargs: object) -> None:
        tried.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tried
