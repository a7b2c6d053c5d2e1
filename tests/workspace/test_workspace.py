"""Finding, refusing and removing artifacts."""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from modeldiff.catalogue.stored import save_arrays
from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import locked, require_free
from tests.made_activations import make_activations


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


@pytest.mark.parametrize(
    "name", ["", " ", "1", "12", "latest", "a:b", "crosscoder:1", "a\x1b[31mb", "a\nb", "\u202eab"]
)
def test_a_name_that_could_not_be_found_again_is_refused_before_anything_runs(workspace: Workspace, name: str) -> None:
    with pytest.raises(InputError, match=r"--name '.*give a word"):
        make(workspace, "toy", name=name)
    assert not workspace.folder.exists()


def test_a_workspace_that_may_only_be_read_answers_from_its_cache(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make(workspace, "toy", name="mine")
    path = tmp_path / "t.txt"
    path.write_text("one")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for name in ("files.locked", "workspace.locked", "workspace.write_json", "files.write_bytes"):
        monkeypatch.setattr(f"modeldiff.workspace.{name}", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert workspace.digest_of(path) == hashlib.sha256(b"one").hexdigest()
    assert make(workspace, "toy").ref == workspace.resolve("mine").ref == artifact.ref
    assert [a.ref for a in workspace.artifacts()] == [artifact.ref]
    assert artifact.problems() == []
    with pytest.raises(OSError, match="Read-only"):
        make(workspace, "toy", 1)


def test_folders_that_changed_places_are_damaged_until_they_are_renamed_back(workspace: Workspace) -> None:
    one, two = (make(workspace, "toy", n).folder for n in (0, 1))
    one.rename(spare := workspace.folder / "spare")
    two.rename(one)
    spare.rename(two)
    found, damaged = workspace.survey()
    assert not found
    assert [why.partition("toy/1 ")[2] or why.partition("toy/2 ")[2] for _, why in damaged] == [
        "holds toy:2, which belongs into toy/2: rename it back",
        "holds toy:1, which belongs into toy/1: rename it back",
    ]
    moved = workspace.folder / "activations" / "1"
    moved.parent.mkdir()
    one.rename(moved)
    assert "activations/1 holds toy:2" in workspace.survey()[1][0][1]


@pytest.mark.parametrize(
    "content",
    ['{"format": 3, "versions": {"toy": "1"}}', '{"format": 3, "versions": 1}', '{"format": 3}', '{"format"', "[3]"],
)
def test_a_damaged_head_says_what_to_write_into_it(workspace: Workspace, content: str) -> None:
    make(workspace, "toy")
    path = workspace.folder / "workspace.json"
    path.write_text(content)
    with pytest.raises(DamagedError) as caught:
        Workspace(workspace.folder)
    mended = re.search(r"write (\{.*\}) into it", str(caught.value))
    assert mended
    path.write_text(mended[1])
    assert make(Workspace(workspace.folder), "toy", 1).ref == "toy:2"


def test_a_workspace_of_an_older_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workspace.json").write_text('{"format": 2, "versions": {}}')
    with pytest.raises(InputError, match=r"format 2 is older than this modeldiff reads \(3\): use the modeldiff that"):
        Workspace(tmp_path)


def test_files_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    artifact = make_activations(Workspace(tmp_path / "ws"), torch.ones(4, 2), torch.ones(4, 3))
    save_arrays(tmp_path / "kept.safetensors", {"x": np.zeros(2)})
    for path in (tmp_path / "kept.safetensors", *map(artifact.file, artifact.files())):
        assert path.stat().st_mode == plain.stat().st_mode


def test_a_file_system_without_locks_is_one_line(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("modeldiff.workspace.files.fcntl.flock", flock)
    with pytest.raises(MachineError, match=r"has no file locks \(No locks available\).*--workspace on another one"):
        make(workspace, "toy")


def test_who_waited_for_a_lock_that_was_removed_does_not_have_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
        path.unlink()
        with locked(path, wait=False):
            pass
