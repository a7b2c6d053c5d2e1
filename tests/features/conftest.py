"""One tiny model as both models of a pair, harvested once for all tests; the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.cli.main import run as run_cli
from modeldiff.workspace import Workspace
from tests.features.made_pair import Made, make_pair


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(_pair: Made, tmp_path: Path) -> Made:
    """Model A and model B are the same; no stitch yet. A workspace of the test's own."""
    return _pair.copy(tmp_path / "ws")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `modeldiff features ARGS` prints, which must end well and fit 80 columns."""

    def call(workspace: Workspace, *args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_cli(["--workspace", str(workspace.folder), "features", *args])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert "--json" in args or max(map(len, shown.splitlines())) <= 80
        return shown

    return call


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """dying(home, name, *moments): `home.name` dies in its calls of these numbers. The list gets the arguments of every
    call."""

    def make(home: Any, name: str, *moments: int) -> list[Any]:
        original, calls = getattr(home, name), list[Any]()

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) in moments:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(home, name, call)
        return calls

    return make


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 pairs of made_crosscoder.py's features, so that shards have several; a checkpoint after each shard,
    however long it takes."""
    monkeypatch.setattr("modeldiff.workspace.stage._WRITING_SHARE", math.inf)
    monkeypatch.setattr("modeldiff.features.codes._DENSE_VALUES", 640)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")
