"""Digests of an artifact's files: BLAKE3 now, SHA-256 for artifacts made before, nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.errors import DamagedError, InputError
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.digest import digest_file, durable_digest, has_digest
from modeldiff.workspace.files import CHEAP_BYTES, sha256_file, sha256_json
from modeldiff.workspace.manifest import FORMAT, FileEntry

# More than one block of reading, and no multiple of it.
CONTENT = bytes(range(251)) * 9000
# The digest of no bytes, as BLAKE3's and SHA-256's own publications give it.
BLAKE3_OF_NOTHING = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
SHA256_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@settings
class Cook(Settings):
    k: int = setting(default=64)
    """How many."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def build(work: Work) -> dict[str, Any]:
    work.write_bytes("data.bin", CONTENT)
    work.write_bytes("empty.bin", b"")
    return {}


def bake(workspace: Workspace) -> Artifact:
    return produce(workspace, Order("toy", Cook(), {}, 1), build)


def edit(artifact: Artifact, change: Callable[[dict[str, Any]], object]) -> None:
    path = artifact.folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def made_before(workspace: Workspace) -> Artifact:
    """An artifact as it was when digests were SHA-256."""
    artifact = bake(workspace)
    files = {
        name: {"size": (artifact.folder / name).stat().st_size, "sha256": sha256_file(artifact.folder / name)}
        for name in artifact.files()
    }
    edit(artifact, lambda data: data.update(format=1, files=files))
    return workspace.find("toy")


def test_known_digests(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    assert digest_file(path) == durable_digest(path) == f"blake3:{BLAKE3_OF_NOTHING}"
    assert digest_file(path, "sha256") == sha256_file(path) == SHA256_OF_NOTHING
    path.write_bytes(CONTENT)
    assert digest_file(path, "sha256") == hashlib.sha256(CONTENT).hexdigest()
    assert has_digest(path, digest_file(path))
    assert has_digest(path, hashlib.sha256(CONTENT).hexdigest())
    path.write_bytes(CONTENT[:-1] + b"!")
    assert not has_digest(path, hashlib.sha256(CONTENT).hexdigest())


def test_a_manifest_names_the_algorithm(workspace: Workspace) -> None:
    data = json.loads((bake(workspace).folder / "manifest.json").read_text())
    assert data["format"] == FORMAT == 2, "a reader of format 1 must say that it is too old"
    assert data["files"]["empty.bin"] == {"size": 0, "blake3": BLAKE3_OF_NOTHING}


def test_an_artifact_made_before_is_verified_cached_and_the_same_input(workspace: Workspace) -> None:
    old = made_before(workspace)
    assert old.problems() == []
    assert bake(workspace).ref == "toy:1", "from the cache"
    content = {"data.bin": hashlib.sha256(CONTENT).hexdigest(), "empty.bin": SHA256_OF_NOTHING}
    assert old.manifest.digest == old.as_input().digest == sha256_json(["toy", content])
    order = Order("crosscoder", Cook(), {"activations": old.as_input()}, 3)
    inputs = {"activations": sha256_json(["toy", content])}
    assert order.fingerprint == sha256_json(["crosscoder", 3, {"k": 64}, {}, inputs])


@pytest.mark.parametrize("make", [bake, made_before])
def test_a_flipped_bit_is_found(workspace: Workspace, make: Callable[[Workspace], Artifact]) -> None:
    artifact = make(workspace)
    assert artifact.problems() == []
    for at in (0, 1 << 20, len(CONTENT) - 1):
        flipped = bytearray(CONTENT)
        flipped[at] ^= 1
        (artifact.folder / "data.bin").write_bytes(flipped)
        assert artifact.problems() == ["data.bin: is damaged: its content is not what was written (digest differs)"]
        assert len(CONTENT) <= CHEAP_BYTES
        with pytest.raises(DamagedError, match="digest differs"):
            artifact.file("data.bin")


@pytest.mark.parametrize(
    "entry",
    [
        {"size": 0, "md5": "d41d8cd98f00b204e9800998ecf8427e"},
        {"size": 0},
        {"blake3": BLAKE3_OF_NOTHING},
        {"size": 0, "blake3": BLAKE3_OF_NOTHING, "sha256": SHA256_OF_NOTHING},
        {"size": 0, "sha256": "md5:d41d8cd98f00b204e9800998ecf8427e"},
        {"size": 0, "blake3": 7},
        "blake3",
        [],
    ],
)
def test_an_unknown_digest_is_a_damaged_manifest(workspace: Workspace, entry: object) -> None:
    artifact = bake(workspace)
    edit(artifact, lambda data: data["files"].update({"empty.bin": entry}))
    with pytest.raises(
        DamagedError, match=r"manifest\.json, 'files': expected 'size' and a digest by blake3 or sha256"
    ):
        workspace.find("toy")
    (damaged,) = workspace.damaged()
    assert "\n" not in damaged[1]


def test_a_newer_manifest_is_not_taken_for_a_damaged_one(workspace: Workspace) -> None:
    edit(bake(workspace), lambda data: data.update(format=FORMAT + 1))
    with pytest.raises(InputError, match=r"format 3 is newer than this modeldiff reads \(2\): upgrade modeldiff"):
        workspace.find("toy")


def test_an_older_workspace_is_raised_when_it_is_written_into_not_before(workspace: Workspace) -> None:
    made_before(workspace)
    path = workspace.folder / "workspace.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    bake(Workspace(workspace.folder))
    assert json.loads(path.read_text()) == {"format": 1, "versions": {"toy": 1}}, "from the cache: nothing is written"
    produce(Workspace(workspace.folder), Order("toy", Cook(), {}, 2), build)
    assert json.loads(path.read_text()) == {"format": 2, "versions": {"toy": 2}}
    assert [artifact.problems() for artifact in workspace.artifacts()] == [[], []]


def test_work_begun_with_other_digests_is_continued(workspace: Workspace) -> None:
    def ledger(folder: Path) -> Path:
        return folder / "resume" / "digests.jsonl"

    work = Work(workspace.folder / "w")
    work.write_bytes("data.bin", CONTENT)
    assert json.loads(ledger(work.folder).read_text()) == {
        "name": "data.bin",
        "size": len(CONTENT),
        "blake3": digest_file(work.folder / "data.bin").removeprefix("blake3:"),
    }
    before = {"name": "data.bin", "size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    ledger(work.folder).write_text(json.dumps(before) + "\n")
    again = Work(work.folder)
    assert again.has("data.bin")
    again.write_bytes("empty.bin", b"")
    assert again.entries() == {
        "data.bin": FileEntry(len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),
        "empty.bin": FileEntry(0, f"blake3:{BLAKE3_OF_NOTHING}"),
    }
