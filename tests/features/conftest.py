"""Two copies of one tiny model, harvested once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from modeldiff.workspace import Workspace
from tests.features.score.made import Made, make, save_loud
from tests.harvest.conftest import make_texts


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pair")
    texts = make_texts()
    (folder / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    model = save_loud(folder / "model", texts)
    return make(folder / "ws", {"a": model, "b": model}, folder / "texts.txt")


@pytest.fixture
def pair(_pair: Made, tmp_path: Path) -> Made:
    """Model A and model B are the same. A workspace of the test's own."""
    shutil.copytree(_pair.workspace.folder, tmp_path / "ws")
    workspace = Workspace(tmp_path / "ws")
    return Made(workspace, workspace.find("activations"), workspace.find("features"))
