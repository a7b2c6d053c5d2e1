"""One tiny model as both models of a pair, harvested once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.features.made_pair import Made, make_pair


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(_pair: Made, tmp_path: Path) -> Made:
    """Model A and model B are the same; no stitch yet. A workspace of the test's own."""
    return _pair.copy(tmp_path / "ws")
