"""The cache: what is answered from it, why something runs again, what survives an interruption."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce


@settings
class Cook(Settings):
    k: int = setting(default=64)
    """How many."""
    device: str = setting(default="cpu", result=False)
    """Where."""


class InterruptedBuildError(Exception):
    pass


def bake(
    workspace: Workspace,
    cook: Cook | None = None,
    *,
    digest: str = "d",
    build: Callable[[Work], dict[str, Any]] | None = None,
    schema: int = 1,
    **kwargs: Any,
) -> Artifact:
    def plain(work: Work) -> dict[str, Any]:
        work.write_bytes("data.bin", b"x" * 10)
        return {"loss": 0.5}

    order = Order("toy", cook or Cook(), {"texts": Input("t.txt", digest)}, schema)
    return produce(workspace, order, build or plain, **kwargs)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def test_first_run_is_new_and_second_is_up_to_date(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert bake(workspace).ref == "toy:1"
    assert "toy: new" in capsys.readouterr().err
    assert bake(workspace).ref == "toy:1"
    assert capsys.readouterr().err == "toy:1 is up to date\n"


def test_a_setting_that_cannot_change_the_result_is_ignored(workspace: Workspace) -> None:
    assert bake(workspace, Cook(device="cpu")).ref == bake(workspace, Cook(device="cuda")).ref


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cook": Cook(k=100)}, "k changed 64 -> 100"),
        ({"digest": "e"}, "input texts changed"),
        ({"force": True}, "forced"),
        ({"schema": 2}, "modeldiff itself changed"),
    ],
)
def test_it_says_why_it_runs_again(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], change: dict[str, Any], reason: str
) -> None:
    bake(workspace)
    capsys.readouterr()
    assert bake(workspace, **change).ref == "toy:2"
    assert reason in capsys.readouterr().err


def test_a_corrupt_cached_artifact_is_reported_and_made_again(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    first = bake(workspace)
    (first.folder / "data.bin").write_bytes(b"y" * 10)
    with pytest.raises(DamagedError, match="digest differs"):
        first.file("data.bin")
    second = bake(workspace)
    assert second.ref == "toy:2"
    assert "toy:1 is corrupt (data.bin: is damaged" in capsys.readouterr().err
    assert bake(workspace).ref == "toy:2"


def test_an_interrupted_build_continues_and_gives_the_same_artifact(workspace: Workspace, tmp_path: Path) -> None:
    built: list[str] = []

    def parts(stop_after: int) -> Callable[[Work], dict[str, Any]]:
        def build(work: Work) -> dict[str, Any]:
            for number in range(4):
                if work.has(f"part-{number}"):
                    continue
                if number == stop_after:
                    work.temporary("half-written").write_bytes(b"torn")
                    raise InterruptedBuildError
                built.append(f"part-{number}")
                work.write_bytes(f"part-{number}", bytes([number]) * 100)
            return {}

        return build

    with pytest.raises(InterruptedBuildError):
        bake(workspace, build=parts(2))
    assert workspace.artifacts() == []
    resumed = bake(workspace, build=parts(99))
    straight = bake(Workspace(tmp_path / "other"), build=parts(99))
    assert built == ["part-0", "part-1", "part-2", "part-3"] + [f"part-{n}" for n in range(4)]
    assert resumed.manifest.digest == straight.manifest.digest
    assert resumed.files() == [f"part-{n}" for n in range(4)]
    assert workspace.partials() == []


def test_a_kill_while_checkpoints_are_dropped_leaves_no_part_of_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that says a file is done, without the checkpoint that belongs to it, must not be found again."""

    def build(work: Work) -> dict[str, Any]:
        if not work.has("data.bin"):
            (work.resume / "cursor.json").write_text("{}")
            work.write_bytes("data.bin", b"x" * 10)
        assert (work.resume / "cursor.json").exists()
        return {}

    def die(folder: Path, **_: Any) -> None:
        if folder.exists():
            (folder / "cursor.json").unlink()  # the ledger is still there
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modeldiff.workspace.stage.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            bake(workspace, build=build)
    assert bake(workspace, build=build).files() == ["data.bin"]
    assert workspace.partials() == []


def test_a_torn_ledger_line_is_ignored(workspace: Workspace) -> None:
    work = Work(workspace.folder / "w")
    work.write_bytes("a", b"1")
    with (work.resume / "digests.jsonl").open("a") as file:
        file.write('{"name": "b", "si')
    again = Work(workspace.folder / "w")
    assert again.has("a")
    again.write_bytes("b", b"2")
    assert Work(workspace.folder / "w").has("b")


def test_a_file_that_lost_its_content_is_not_taken_for_done(workspace: Workspace) -> None:
    work = Work(workspace.folder / "w")
    work.write_bytes("a", b"123")
    (work.folder / "a").write_bytes(b"1")
    assert not Work(workspace.folder / "w").has("a")


def _hold(path: str, held: Any, done: Any) -> None:
    with FileLock(path):
        held.set()
        done.wait(30)


def test_a_second_process_on_the_same_work_gets_a_clear_error(workspace: Workspace) -> None:
    workspace.create()
    order = Order("toy", Cook(), {"texts": Input("t.txt", "d")}, 1)
    lock = workspace.folder / ".partial" / f"{order.fingerprint[:32]}.lock"
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(lock), held, done))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(MachineError, match="another process is already making this toy"):
            bake(workspace)
    finally:
        done.set()
        other.join()
    assert bake(workspace).ref == "toy:1"


def test_the_manifest_holds_everything(workspace: Workspace) -> None:
    artifact = bake(workspace, name="first")
    data = json.loads((artifact.folder / "manifest.json").read_text())
    assert data["settings"] == {"k": 64, "device": "cpu"}
    assert data["inputs"] == {"texts": {"label": "t.txt", "digest": "d"}}
    assert data["metrics"] == {"loss": 0.5}
    assert data["files"]["data.bin"]["size"] == 10
    assert data["environment"]["packages"]["torch"]
    assert data["peak_memory_bytes"] > 0


@pytest.mark.parametrize("field", ["fingerprint", "files", "format"])
def test_a_missing_field_is_an_error_that_names_file_and_field(workspace: Workspace, field: str) -> None:
    artifact = bake(workspace)
    path = artifact.folder / "manifest.json"
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(DamagedError, match=rf"manifest\.json.*'{field}'"):
        workspace.find("toy")


def test_an_unknown_field_is_an_error(workspace: Workspace) -> None:
    path = bake(workspace).folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(DamagedError, match="'surprise' is unknown"):
        workspace.find("toy")


def test_timing_logs_do_not_change_what_the_artifact_is(workspace: Workspace, tmp_path: Path) -> None:
    def build(text: bytes) -> Callable[[Work], dict[str, Any]]:
        def write(work: Work) -> dict[str, Any]:
            work.write_bytes("data", b"same")
            work.write_bytes("logs/throughput.jsonl", text)
            return {}

        return write

    one = bake(workspace, build=build(b"1"))
    two = bake(Workspace(tmp_path / "other"), build=build(b"22"))
    assert one.manifest.digest == two.manifest.digest
    assert one.problems() == []


def test_settings_refuse_unknown_and_missing_fields() -> None:
    assert Cook.from_json({"k": 3, "device": "cpu"}, "f.json") == Cook(k=3)
    with pytest.raises(InputError, match=r"f\.json: field 'k' is missing"):
        Cook.from_json({"device": "cpu"}, "f.json")
    with pytest.raises(InputError, match="field 'x' is unknown"):
        Cook.from_json({"k": 1, "device": "cpu", "x": 1}, "f.json")
