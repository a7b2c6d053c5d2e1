"""What `modeldiff workspace list` shows, and what it does not hide."""

import json
import shutil
from pathlib import Path

import pytest

from modeldiff.cli.main import run
from modeldiff.errors import InputError
from modeldiff.workspace import KINDS
from tests.made_workspace import make_manifests


def listed(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[list[str], list[str]]:
    """(references, damaged folders) of `workspace list --json`."""
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(folder), "workspace", "list", "--json", *args])
    assert caught.value.code == 0
    data = json.loads(capsys.readouterr().out)
    return [one["ref"] for one in data["artifacts"]], data["damaged"]


def test_one_kind_or_all_and_always_the_damaged_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_manifests(tmp_path / "ws", 30).folder
    everything, damaged = listed(capsys, folder)
    assert len(everything) == 30
    assert damaged == []
    assert listed(capsys, folder, "--kind", "crosscoder")[0] == ["crosscoder:1", "crosscoder:2", "crosscoder:3"]

    broken = folder / "features" / "1"
    (broken / "manifest.json").write_text("{}")
    assert listed(capsys, folder) == ([ref for ref in everything if ref != "features:1"], [str(broken)])
    assert listed(capsys, folder, "--kind", "crosscoder")[1] == [str(broken)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_artifact_can_be_asked_for(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = listed(capsys, make_manifests(tmp_path / "ws", 2 * len(KINDS)).folder, "--kind", kind)
    assert all(ref.startswith(f"{kind}:") for ref in found)


def test_a_kind_that_is_made_no_more_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A workspace of an older version may hold one."""
    workspace = make_manifests(tmp_path / "ws", len(KINDS))
    everything, _ = listed(capsys, workspace.folder)
    shutil.copytree(workspace.folder / "features", workspace.folder / "screen")
    shutil.copytree(workspace.folder / "features" / "1", workspace.folder / "screen" / "2")
    (workspace.folder / "screen" / "2" / "manifest.json").write_text("{}")
    counted = json.loads((workspace.folder / "workspace.json").read_text())
    counted["versions"] = {"screen": 2}
    (workspace.folder / "workspace.json").write_text(json.dumps(counted))
    assert listed(capsys, workspace.folder) == (everything, [])
    assert workspace.next_version("toy") == 2
    with pytest.raises(InputError, match="no artifact 'screen:1'"):
        workspace.resolve("screen:1")
