"""The four commands, and what works on an imported crosscoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeldiff.cli.main import run
from modeldiff.crosscoder import load
from modeldiff.workspace import Workspace
from tests.interchange import foreign
from tests.made_activations import make_activations


@pytest.fixture
def done(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(["--workspace", str(workspace.folder), *map(str, words)])
        said = capsys.readouterr()
        assert stop.value.code == code, said.err
        return said.out if not code else said.err.splitlines()[-1]

    return call


def test_there_and_back(tmp_path: Path, workspace: Workspace, done: Callable[..., str]) -> None:
    """A library's file, imported, measured, written for the library, and imported again: the same codes."""
    x = foreign.activations()
    make_activations(workspace, *x)
    theirs = foreign.written(tmp_path / "theirs", foreign.forks(threshold=0.7, k=torch.tensor(4)))
    assert "3..3 -> 0..0; 7..7 -> 1..1" in " ".join(done("import", theirs, "--device", "cpu").split())
    assert json.loads(done("import", theirs, "--json"))["metrics"]["from"] == "dictionary_learning"
    assert json.loads(done("features", "--json", "--no-predictability", "--device", "cpu"))
    for to, back in (("dictionary_learning", "crosscoder:2"), ("saelens", "crosscoder:3")):
        about = json.loads(done("export", "crosscoder:1", "--to", to, "--out", tmp_path / to, "--json"))
        assert about == json.loads((tmp_path / to / "modeldiff.json").read_text())
        done("import", tmp_path / to, "--device", "cpu")
        f_NF = [load(workspace.resolve(ref)).encode(*x) for ref in ("crosscoder:1", back)]
        torch.testing.assert_close(f_NF[0], f_NF[1], atol=1e-5, rtol=1e-5)
    assert "is not empty: choose another folder" in done(
        "export", "--to", "saelens", "--out", tmp_path / "saelens", code=2
    )


def test_what_is_not_there(tmp_path: Path, workspace: Workspace, done: Callable[..., str]) -> None:
    make_activations(workspace, *foreign.activations())
    assert "neither a folder nor a repository" in done("import", tmp_path / "absent", code=2)
    (tmp_path / "empty").mkdir()
    assert "empty has no weights: expected one of" in done("import", tmp_path / "empty", code=2)
    assert "Missing option" in done("import", code=2)
    assert "no crosscoder in" in done("export", "--to", "saelens", "--out", tmp_path / "out", code=2)
    assert "the hub does not take" in done("push", "activations:1", "no such/name/at all", code=2)
