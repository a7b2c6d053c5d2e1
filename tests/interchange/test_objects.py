"""push and pull with stores that fsspec opens: in memory, and a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from modeldiff.cli.main import run
from modeldiff.crosscoder import load
from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.interchange.hub import pull, push
from modeldiff.workspace import Artifact, Workspace
from tests.features.made_crosscoder import made_crosscoder, publish
from tests.interchange import foreign
from tests.made_activations import make_activations


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield "memory://bucket/runs/1" if request.param == "memory" else f"file://{tmp_path}/store/1"
    MemoryFileSystem.store.clear()


@pytest.fixture
def crosscoder(workspace: Workspace) -> Artifact:
    return publish(workspace, made_crosscoder(), make_activations(workspace, *foreign.activations()))


def content(address: str) -> dict[str, bytes]:
    store, root = fsspec.core.url_to_fs(address)
    return {path.removeprefix(f"{root}/"): store.cat_file(path) for path in store.find(root)}


def put(address: str, name: str, value: bytes | None) -> None:
    store, root = fsspec.core.url_to_fs(address)
    store.rm_file(f"{root}/{name}") if value is None else store.pipe_file(f"{root}/{name}", value)


def test_what_is_pushed_can_be_pulled(address: str, crosscoder: Artifact, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(crosscoder.folder.parent.parent), "push", crosscoder.ref, address])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{crosscoder.ref} is at {address}\n"
    assert set(content(address)) == {
        "manifest.json", *(f"content/{one.blake3}" for one in crosscoder.manifest.files.values())
    }  # fmt: skip
    there = Workspace(tmp_path / "other")
    pulled = pull(address, there, name="theirs")
    assert (pulled.ref, pulled.manifest.name) == ("crosscoder:1", "theirs")
    assert pulled.manifest.environment["pulled_from"] == address
    assert pulled.manifest.digest == crosscoder.manifest.digest
    assert pulled.problems() == []
    assert load(pulled).config == load(crosscoder).config
    assert pull(address, there).ref == pulled.ref, "it is there already"
    assert there.partials() == []


def test_a_push_that_was_cut_off_is_no_artifact_and_goes_on(
    address: str, crosscoder: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, sent = type(fsspec.core.url_to_fs(address)[0]), list[str]()
    put_file = kind.put_file

    def counted(self: fsspec.AbstractFileSystem, here: str, there: str) -> None:
        if len(sent) == limit:
            raise ConnectionResetError("the line is dead")
        sent.append(Path(here).name)
        put_file(self, here, there)

    monkeypatch.setattr(kind, "put_file", counted)
    limit = 1
    with pytest.raises(MachineError, match=r"the line is dead.*the same command continues"):
        push(crosscoder, address)
    with pytest.raises(InputError, match=r"has no manifest\.json: nothing was pushed there, or not all of it"):
        pull(address, workspace)
    limit = 100
    push(crosscoder, address)
    assert sorted(sent) == sorted([*crosscoder.files(), "manifest.json"]), "each once"
    assert sent[-1] == "manifest.json"


def test_a_pull_that_was_cut_off_fetches_only_what_is_missing(
    address: str, crosscoder: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(crosscoder, address)
    missing = crosscoder.manifest.files["model.safetensors"].blake3
    weights = content(address)[f"content/{missing}"]
    there = Workspace(tmp_path / "other")
    put(address, f"content/{missing}", None)
    with pytest.raises(DamagedError, match=r"model\.safetensors is missing"):
        pull(address, there)
    put(address, f"content/{missing}", weights[:-1] + b"?")
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged: its digest is not the manifest's"):
        pull(address, there)
    assert there.artifacts() == []
    put(address, f"content/{missing}", weights)
    put(address, f"content/{crosscoder.manifest.files['config.json'].blake3}", None)
    assert pull(address, there).problems() == [], "the other file was there already"
    assert there.partials() == []


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("nowhere://a/b", InputError, "'nowhere://a/b' cannot be opened .*nowhere"),
        ("memory://empty", InputError, "memory://empty has no manifest.json"),
    ],
)
def test_an_address_that_is_none(wrong: str, error: type[Exception], message: str, workspace: Workspace) -> None:
    with pytest.raises(error, match=message):
        pull(wrong, workspace)
