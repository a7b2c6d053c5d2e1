"""`modeldiff features stitch`: what it prints, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modeldiff.cli.main import run
from modeldiff.workspace import Workspace
from tests.made_activations import make_activations


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    x = torch.randn(1500, 12, generator=torch.Generator().manual_seed(0))
    make_activations(Workspace(folder), x[:, :8], x[:, 2:], shard_pairs=500)
    return folder


def call(workspace: Path, *args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(workspace), "features", "stitch", "--device", "cpu", *args])
    return int(str(caught.value.code))


def test_the_table_fits_80_columns(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call(workspace) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "stitch:1 of activations:1"
    overall = {line[:6]: line.split()[-3:] for line in lines if line.startswith(("A -> B", "B -> A"))}
    # Six of B's ten dimensions are A's, six of A's eight are B's.
    assert {which: float(r2) for which, (r2, _, _) in overall.items()} == pytest.approx(
        {"A -> B": 0.6, "B -> A": 0.75}, abs=0.05
    )
    assert all(abs(float(null)) < 0.1 for _, null, _ in overall.values())


def test_json(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call(workspace, "--json", "--name", "both") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ref"], found["name"], found["activations"]) == ("stitch:1", "both", "activations:1")
    for direction in ("a_to_b", "b_to_a"):
        assert {"r2", "null_r2", "ridge"} == found["maps"][direction].keys()
        assert found["maps"][direction]["r2"] == found["metrics"][direction]["r2"]
    assert call(workspace, "--activations", "latest") == 0
    assert "stitch:1 is up to date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--pairs", "99"], "--pairs must be at least 100, found 99"),
        (["--outlier-factor", "-1"], "--outlier-factor must be at least 0"),
        (["--outlier-factor", "nan"], "--outlier-factor must be at least 0"),
        (["--outlier-factor", "0.01"], "raise --outlier-factor"),
        (["--activations", "activations:7"], "no activations called 'activations:7'"),
        (["--activations", "crosscoder:1"], "is not of the kind 'activations'"),
        (["--device", "abacus"], "--device expects"),
    ],
)
def test_bad_input_is_one_line(
    workspace: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call(workspace, *args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("modeldiff: ")
    assert message in last


def test_the_workspace_knows_it(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(workspace) == 0
    capsys.readouterr()
    for args in (["list", "--kind", "stitch"], ["verify", "stitch:1"]):
        with pytest.raises(SystemExit) as caught:
            run(["--workspace", str(workspace), "workspace", *args])
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "stitch:1" in out
    assert "1 artifacts verified, 0 damaged" in out
