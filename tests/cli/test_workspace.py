"""`modeldiff workspace`: what the list shows and does not hide, and what may be removed."""

import json
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tests.cli.conftest import Call
from tests.made_workspace import KINDS, make_manifests


def listed(call: Call, folder: Path, *args: str) -> tuple[list[str], list[str]]:
    """(references, damaged folders) of `workspace list --json`."""
    code, out, _ = call(folder, "workspace", "list", "--json", *args)
    assert code == 0
    data = json.loads(out)
    return [one["ref"] for one in data["artifacts"]], data["damaged"]


def test_one_kind_or_all_and_always_the_damaged_ones(tmp_path: Path, call: Call) -> None:
    folder = make_manifests(tmp_path / "ws", 30).folder
    everything, damaged = listed(call, folder)
    assert (len(everything), damaged) == (30, [])
    assert listed(call, folder, "--kind", "crosscoder")[0] == [f"crosscoder:{version}" for version in (1, 2, 3, 4)]

    broken = folder / "features" / "1"
    (broken / "manifest.json").write_text("{}")
    assert listed(call, folder) == ([ref for ref in everything if ref != "features:1"], [str(broken)])
    assert listed(call, folder, "--kind", "crosscoder")[1] == [str(broken)]


def test_a_kind_that_is_made_no_more_is_listed_and_can_be_removed(
    tmp_path: Path, call: Call, fails: Callable[..., str]
) -> None:
    """A workspace of another version may hold one: it takes room."""
    workspace = make_manifests(tmp_path / "ws", len(KINDS))
    before, _ = listed(call, workspace.folder)
    (workspace.folder / "screen" / "2").mkdir(parents=True)
    (workspace.folder / "screen" / "2" / "manifest.json").write_text("{}")
    assert listed(call, workspace.folder) == (before, [str(workspace.folder / "screen" / "2")])
    assert "no artifact 'scream:1'" in fails(2, workspace.folder, "workspace", "remove", "scream:1")
    assert call(workspace.folder, "workspace", "remove", "screen:2", "--yes")[0] == 0
    assert listed(call, workspace.folder) == (before, [])


def test_what_others_were_made_from_is_removed_by_force_only(
    tmp_path: Path, call: Call, fails: Callable[..., str]
) -> None:
    folder = make_manifests(tmp_path / "ws", 3).folder
    message = fails(2, folder, "workspace", "remove", "crosscoder:1", "--yes")
    assert "crosscoder:1 is what features:1 was made from" in message
    assert call(folder, "workspace", "remove", "crosscoder:1", "--force")[0] == 0
    assert listed(call, folder)[0] == ["activations:1", "features:1"]


def test_clean_takes_unfinished_work_and_cells_but_not_what_is_worked_on(tmp_path: Path, call: Call) -> None:
    workspace = make_manifests(tmp_path / "ws", 1)
    begun, busy = (workspace.folder / ".partial" / name for name in ("aa", "bb"))
    for folder in (begun, busy, workspace.toy_cells):
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"123")
    with FileLock(busy.with_suffix(".lock")):
        code, out, err = call(workspace.folder, "workspace", "clean", "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {"removed": [str(begun)], "bytes": 3}
    assert f"{busy} is being worked on" in err
    _, out, _ = call(workspace.folder, "workspace", "clean", "--yes", "--json")
    assert json.loads(out) == {"removed": [str(busy), str(workspace.toy_cells)], "bytes": 6}
    assert listed(call, workspace.folder) == (["activations:1"], [])
