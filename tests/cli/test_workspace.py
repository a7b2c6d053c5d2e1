"""`modeldiff workspace`: what the list shows and does not hide, and what may be removed."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeldiff.workspace import Workspace
from modeldiff.workspace.files import blake3_file, locked
from tests.cli.conftest import Call
from tests.made_activations import make_activations
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
    with locked(busy.with_suffix(".lock")):
        code, out, err = call(workspace.folder, "workspace", "clean", "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {"removed": [str(begun)], "bytes": 3}
    assert f"{busy} is being worked on" in err
    _, out, _ = call(workspace.folder, "workspace", "clean", "--yes", "--json")
    assert json.loads(out) == {"removed": [str(busy), str(workspace.toy_cells)], "bytes": 6}
    assert listed(call, workspace.folder) == (["activations:1"], [])


def rewritten(folder: Path, **fields: object) -> None:
    """A manifest with other fields, and the digest that then belongs to it."""
    path = folder / "manifest.json"
    data = {**json.loads(path.read_text()), **fields}
    del data["check"]
    content = json.dumps(data, indent=2) + "\n"
    check = hashlib.sha256(content.encode()).hexdigest()
    path.write_text(content.replace("\n}\n", f',\n  "check": "{check}"\n}}\n'))


def test_a_manifest_with_the_digest_of_what_it_holds_is_read(tmp_path: Path, call: Call) -> None:
    folder = make_manifests(tmp_path / "ws", 1).folder
    rewritten(folder / "activations" / "1", seconds=7.5)
    assert "8 s" in call(folder, "workspace", "list")[1]
    path = folder / "activations" / "1" / "manifest.json"
    for change in (lambda text: text[:-1], lambda text: text.replace("{", "{ ", 1), lambda text: text + " "):
        whole = path.read_text()
        path.write_text(change(whole))
        assert listed(call, folder) == ([], [str(path.parent)])
        path.write_text(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").write_text('{"format": ' + "[" * 3000),
        lambda folder: (folder / "manifest.json").write_text('{"format": 3, "kind": ' + "9" * 5000 + "}"),
        lambda folder: rewritten(folder, created=None),
        lambda folder: rewritten(folder, files={"a": {"size": -1, "blake3": ""}}),
        lambda folder: rewritten(folder, files={"a": {"size": "1", "blake3": ""}}),
        lambda folder: rewritten(folder, seconds=10**400),
        lambda folder: rewritten(folder, inputs=[]),
        lambda folder: rewritten(folder, version=2),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"fve"', '"fvE"')
        ),
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"seconds": 12.3', '"seconds": 1e999')
        ),
    ],
)
def test_one_broken_artifact_never_blocks_the_others(
    tmp_path: Path, call: Call, fails: Callable[..., str], damage: Callable[[Path], object]
) -> None:
    folder = make_manifests(tmp_path / "ws", 3).folder
    damage(folder / "crosscoder" / "1")
    code, out, err = call(folder, "workspace", "list")
    assert code == 0
    assert "activations:1" in out
    assert "features:1" in out
    assert f"damaged, not listed: {folder / 'crosscoder' / '1'}" in err
    assert call(folder, "workspace", "show", "features:1")[0] == 0
    assert "crosscoder" in fails(1, folder, "workspace", "show", "crosscoder:1")
    code, out, _ = call(folder, "workspace", "verify", "--json")
    assert code == 1
    assert json.loads(out)["verified"] == ["activations:1", "features:1"]
    assert "crosscoder:1" in json.loads(out)["problems"]
    assert call(folder, "workspace", "remove", "crosscoder:1", "--yes")[0] == 0


def test_verify_goes_on_after_what_cannot_be_read(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "ws")
    for seed in range(3):
        make_activations(workspace, torch.full((4, 2), float(seed)), torch.ones(4, 2))

    def read(path: Path) -> str:
        if path.name == "store.json" and path.parent.name == "1":
            raise PermissionError(13, "Permission denied", str(path))
        return blake3_file(path)

    monkeypatch.setattr("modeldiff.workspace.artifact.blake3_file", read)
    shard = workspace.folder / "activations" / "3" / "shards" / "00000.a.h5"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    code, out, _ = call(workspace.folder, "workspace", "verify")
    assert code == 1
    assert re.search(r"activations:1: store\.json: cannot be read \(.*Permission denied", out)
    assert "activations:3: shards/00000.a.h5: is damaged" in out
    assert "3 artifacts verified, 2 damaged" in out


def test_clean_takes_what_killed_processes_left_beside_the_artifacts(tmp_path: Path, call: Call) -> None:
    folder = make_manifests(tmp_path / "ws", 1).folder
    left = [folder / "workspace.json.123.tmp", folder / ".partial" / "digests.json.9.tmp"]
    for path in left:
        path.write_bytes(b"12")
    _, out, _ = call(folder, "workspace", "clean", "--yes", "--json")
    assert json.loads(out) == {"removed": [str(path) for path in left], "bytes": 4}
    assert not any(path.exists() for path in left)
    assert listed(call, folder) == (["activations:1"], [])


def test_a_name_is_refused_before_anything_runs(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "--name '7' would be a version" in fails(2, tmp_path / "ws", "train", "--name", "7")
