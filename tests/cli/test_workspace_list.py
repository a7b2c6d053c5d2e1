"""What `modeldiff workspace list` shows, and what it does not hide."""

import json
from pathlib import Path

import pytest

from modeldiff.cli.main import run
from modeldiff.errors import InputError
from tests.made_workspace import KINDS, make_manifests


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
    assert listed(capsys, folder, "--kind", "crosscoder")[0] == [f"crosscoder:{version}" for version in (1, 2, 3, 4)]

    broken = folder / "features" / "1"
    (broken / "manifest.json").write_text("{}")
    assert listed(capsys, folder) == ([ref for ref in everything if ref != "features:1"], [str(broken)])
    assert listed(capsys, folder, "--kind", "crosscoder")[1] == [str(broken)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_artifact_can_be_asked_for(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = listed(capsys, make_manifests(tmp_path / "ws", 2 * len(KINDS)).folder, "--kind", kind)
    assert all(ref.startswith(f"{kind}:") for ref in found)


def test_a_kind_that_is_made_no_more_is_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A workspace of another version may hold one: it takes room, and can be removed."""
    workspace = make_manifests(tmp_path / "ws", len(KINDS))
    before, _ = listed(capsys, workspace.folder)
    (workspace.folder / "screen" / "2").mkdir(parents=True)
    (workspace.folder / "screen" / "2" / "manifest.json").write_text("{}")
    assert listed(capsys, workspace.folder) == (before, [str(workspace.folder / "screen" / "2")])
    with pytest.raises(InputError, match="no artifact 'scream:1'"):
        workspace.resolve("scream:1")
