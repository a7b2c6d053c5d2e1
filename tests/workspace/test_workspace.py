"""Finding, refusing and removing artifacts."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from modeldiff.errors import InputError, MachineError
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import require_free


@settings
class Nothing(Settings):
    n: int = setting(default=0)
    """A number."""


def make(
    workspace: Workspace, kind: str, n: int = 0, name: str | None = None, source: Artifact | None = None
) -> Artifact:
    def build(work: Work) -> dict[str, int]:
        work.write_bytes("data", bytes([n]))
        return {}

    inputs = {"source": source.as_input()} if source else {"source": Input("s", "0")}
    return produce(workspace, Order(kind, Nothing(n=n), inputs, 1), build, name=name)


def test_references(workspace: Workspace) -> None:
    for n in range(12):
        make(workspace, "crosscoder", n, name="mine" if n == 3 else None)
    find = workspace.find
    assert find("crosscoder").ref == "crosscoder:12"  # by number, not by the order of the names
    assert find("crosscoder", "latest").ref == "crosscoder:12"
    assert find("crosscoder", 2).ref == find("crosscoder", "2").ref == find("crosscoder", "crosscoder:2").ref
    assert find("crosscoder", "mine").ref == find("crosscoder", "crosscoder:mine").ref == "crosscoder:4"
    assert workspace.resolve("mine").ref == workspace.resolve("crosscoder:4").ref


def test_an_unknown_reference_says_what_there_is(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"no activations in .*: run `modeldiff harvest` first"):
        workspace.find("activations")
    make(workspace, "crosscoder")
    with pytest.raises(InputError, match=r"no crosscoder called '7'.*there is crosscoder:1"):
        workspace.find("crosscoder", "7")
    with pytest.raises(InputError, match="not of the kind 'crosscoder'"):
        workspace.find("crosscoder", "activations:1")


def test_a_removed_version_is_not_given_out_again(workspace: Workspace) -> None:
    make(workspace, "toy", 0)
    workspace.remove(make(workspace, "toy", 1).folder)
    assert make(workspace, "toy", 2).ref == "toy:3"
    assert workspace.partials() == []


def test_users_of(workspace: Workspace) -> None:
    source = make(workspace, "activations")
    user = make(workspace, "crosscoder", source=source)
    assert [a.ref for a in workspace.users_of(source)] == [user.ref]
    assert workspace.users_of(user) == []


def test_newer_format_and_foreign_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "workspace.json").write_text(json.dumps({"format": 99, "versions": {}}))
    with pytest.raises(InputError, match="format 99 is newer"):
        Workspace(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds files but no workspace\.json"):
        Workspace(foreign)
    with pytest.raises(InputError, match="not a folder"):
        Workspace(foreign / "thesis.tex")


def test_a_missing_file_and_one_of_another_size_are_found(workspace: Workspace) -> None:
    artifact = make(workspace, "toy")
    assert artifact.problems() == []
    (artifact.folder / "data").write_bytes(b"zz")
    assert artifact.problems() == ["data: is damaged: 1 bytes expected, 2 found"]
    (artifact.folder / "data").unlink()
    assert artifact.problems() == ["data: is missing"]


def test_an_input_file_is_digested_again_only_when_it_changed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one")
    known = workspace.digest_of(path)
    assert known == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr("modeldiff.workspace.workspace.sha256_file", lambda _: pytest.fail("it is read again"))
        assert workspace.digest_of(path) == known
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert workspace.digest_of(path) == hashlib.sha256(b"two").hexdigest(), "of the same size, its time set back"
    remembered = workspace.folder / ".partial" / "digests.json"
    for damaged in (remembered.read_text().replace(hashlib.sha256(b"two").hexdigest(), "0" * 64), "torn", "[1]"):
        remembered.write_text(damaged)
        assert workspace.digest_of(path) == hashlib.sha256(b"two").hexdigest()


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    require_free(tmp_path / "not" / "yet", 999_999, "this")
    with pytest.raises(MachineError, match=r"this needs 2\.0 MB on disk, 1\.0 MB are free"):
        require_free(tmp_path / "not" / "yet", 2_000_000, "this")
