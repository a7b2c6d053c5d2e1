"""The cache and the manifest: what is answered, why something runs again, what survives, what is found damaged."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.artifact import FORMAT
from modeldiff.workspace.files import locked, sha256_json


@settings
class Cook(Settings):
    k: int = setting(default=64)
    """How many."""
    device: str = setting(default="cpu", result=False)
    """Where."""


# More than one block of reading, and no multiple of it.
CONTENT = bytes(range(251)) * 9000
# The digest of no bytes, as BLAKE3's own publication gives it.
BLAKE3_OF_NOTHING = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


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
        work.write_bytes("data.bin", CONTENT)
        work.write_bytes("empty.bin", b"")
        return {"loss": 0.5}

    order = Order("toy", cook or Cook(), {"texts": Input("t.txt", digest)}, schema)
    return produce(workspace, order, build or plain, **kwargs)


def test_the_second_run_is_up_to_date_whatever_cannot_change_the_result(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bake(workspace).ref == "toy:1"
    assert "toy: new" in capsys.readouterr().err
    assert bake(workspace, Cook(device="cuda")).ref == "toy:1"
    assert capsys.readouterr().err == "toy:1 is up to date\n"


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


@pytest.mark.parametrize("at", [0, 1 << 20, len(CONTENT) - 1])
def test_a_flipped_bit_is_found_and_the_artifact_made_again(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    first = bake(workspace)
    assert first.problems() == []
    flipped = bytearray(CONTENT)
    flipped[at] ^= 1
    (first.folder / "data.bin").write_bytes(flipped)
    assert first.problems() == ["data.bin: is damaged: its content is not what was written (digest differs)"]
    with pytest.raises(DamagedError, match="digest differs"):
        first.file("data.bin")
    assert bake(workspace).ref == "toy:2"
    assert "toy:1 is corrupt (data.bin: is damaged" in capsys.readouterr().err
    assert bake(workspace).ref == "toy:2"


def test_an_interrupted_build_continues_and_gives_the_same_artifact(workspace: Workspace, tmp_path: Path) -> None:
    built: list[int] = []

    def parts(stop_after: int) -> Callable[[Work], dict[str, Any]]:
        def build(work: Work) -> dict[str, Any]:
            for number in range(4):
                if number == stop_after:
                    work.temporary("half-written").write_bytes(b"torn")
                    raise InterruptedBuildError
                if not work.has(f"part-{number}"):
                    built.append(number)
                    work.write_bytes(f"part-{number}", bytes([number]) * 100)
            return {}

        return build

    with pytest.raises(InterruptedBuildError):
        bake(workspace, build=parts(2))
    assert workspace.artifacts() == []
    resumed = bake(workspace, build=parts(99))
    straight = bake(Workspace(tmp_path / "other"), build=parts(99))
    assert built == [0, 1, 2, 3, 0, 1, 2, 3]
    assert resumed.manifest.digest == straight.manifest.digest
    assert resumed.files() == [f"part-{n}" for n in range(4)]
    assert workspace.partials() == []


def test_a_kill_while_checkpoints_are_dropped_leaves_no_part_of_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest that says a file is done, without the checkpoint that belongs to it, must not be found again."""

    def build(work: Work) -> dict[str, Any]:
        if not work.has("data.bin"):
            (work.resume / "cursor.json").write_text("{}")
            work.write_bytes("data.bin", b"x" * 10)
        assert (work.resume / "cursor.json").exists()
        return {}

    def die(folder: Path, **_: Any) -> None:
        if folder.exists():
            (folder / "cursor.json").unlink()  # the digest is still there
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modeldiff.workspace.stage.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            bake(workspace, build=build)
    assert bake(workspace, build=build).files() == ["data.bin"]
    assert workspace.partials() == []


def test_work_that_was_begun_knows_its_whole_files(workspace: Workspace) -> None:
    work = Work(workspace.folder / "w")
    for name in ("a", "b"):
        work.write_bytes(name, b"123")
    (work.folder / "b").write_bytes(b"1")
    (work.folder / "c").write_bytes(b"2")
    (work.resume / "digests" / "c.digest").write_text('{"size": 1, "bla')
    again = Work(workspace.folder / "w")
    assert [again.has(name) for name in "abcd"] == [True, False, False, False]
    other = Work(workspace.folder / "w", rank=1)
    other.write_bytes("c", b"2")
    assert again.has("c")
    assert Work(workspace.folder / "w").has("c")


def test_a_torn_line_of_a_log_is_dropped(workspace: Workspace) -> None:
    log = Work(workspace.folder / "w").folder / "logs" / "capture.jsonl"
    log.parent.mkdir()
    for torn in (b"", b'{"sid'):
        log.write_bytes(b'{"side": "a"}\n' + torn)
        Work(workspace.folder / "w")
        assert log.read_bytes() == b'{"side": "a"}\n'


def _hold(path: str, held: Any, done: Any) -> None:
    with locked(Path(path)):
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
    assert data["format"] == FORMAT == 3
    assert data["settings"] == {"k": 64, "device": "cpu"}
    assert data["inputs"] == {"texts": {"label": "t.txt", "digest": "d"}}
    assert data["metrics"] == {"loss": 0.5}
    assert data["files"]["data.bin"]["size"] == len(CONTENT)
    assert data["files"]["empty.bin"] == {"size": 0, "blake3": BLAKE3_OF_NOTHING}
    digests = {name: f"blake3:{entry['blake3']}" for name, entry in data["files"].items()}
    assert artifact.manifest.digest == artifact.as_input().digest == sha256_json(["toy", digests])
    assert data["fingerprint"] == sha256_json(["toy", 1, {"k": 64}, {}, {"texts": "d"}])
    assert data["environment"]["packages"]["torch"]
    assert data["peak_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("fingerprint"), "'fingerprint' is missing"),
        (lambda data: data.pop("files"), "'files' is missing"),
        (lambda data: data.pop("format"), "'format' is missing"),
        (lambda data: data.update(surprise=1), "'surprise' is unknown"),
        (lambda data: data["files"].update(x={"size": 0, "md5": "d4"}), "'files', 'x': field 'blake3' is missing"),
        (lambda data: data["files"].update(x={"size": 0, "blake3": 7}), "'files', 'x': 'blake3' must be a text"),
        (lambda data: data["files"].update(x=[]), "'files', 'x' must be a table"),
    ],
)
def test_a_manifest_that_was_edited_is_damaged_and_file_and_field_are_named(
    workspace: Workspace, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = bake(workspace).folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DamagedError, match=rf"manifest\.json.*{message}"):
        workspace.find("toy")
    ((folder, why),) = workspace.survey()[1]
    assert folder == path.parent
    assert "\n" not in why


def test_a_newer_manifest_is_not_taken_for_a_damaged_one(workspace: Workspace) -> None:
    path = bake(workspace).folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 4'))
    with pytest.raises(InputError, match=r"format 4 is newer than this modeldiff reads \(3\): upgrade modeldiff"):
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
