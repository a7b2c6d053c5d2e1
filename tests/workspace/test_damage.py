"""Damage to any file, of published artifacts and of unfinished work: it is named, or what it held is made again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run as train
from modeldiff.errors import DamagedError
from modeldiff.features.run import run as features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.run import run as harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace import Artifact, Work, Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.crosscoder.planted import plant

Make = Callable[[Workspace], Artifact]
ROWS, WORDS = 96, 12


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flip": flip,
    "truncate": lambda content: content[: len(content) // 2],
    "zero": lambda content: bytes(len(content)),
}


@pytest.fixture(scope="module", autouse=True)
def _no_figures() -> Iterator[None]:
    """Drawing takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeldiff.crosscoder.training.run.training_figure", lambda *_: b"a picture")
        yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Make]:
    """What makes one artifact of each kind, in a workspace that has the ones before it."""
    folder = tmp_path_factory.mktemp("inputs")
    planted = plant(ROWS, widths=(8, 12), offset=0)
    for side, x_ND in zip("ab", planted.batches(ROWS)[0], strict=True):
        np.save(folder / f"{side}.npy", x_ND.float().numpy())
    text = " ".join(f"w{number}" for number in range(WORDS))
    ends = [place for place, one in enumerate(text + " ") if one == " "]
    lines = [json.dumps({"text": text, "ends": ends, "source": f"s{number % 2}"}) for number in range(ROWS // WORDS)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    arrays = {f"import_{side}": str(folder / f"{side}.npy") for side in "ab"}
    imported = HarvestSettings(**arrays, import_texts=folder / "texts.jsonl", storage="float32", shard_pairs=48)
    few = {"features": 16, "k": 2, "steps": 4, "batch": 16, "holdout": 0.1, "checkpoint_seconds": 0.0}
    return {
        "activations": lambda workspace: harvest(imported, workspace),
        "crosscoder": lambda workspace: train(TrainSettings(**few, device="cpu"), workspace),
        "features": lambda workspace: features(FeaturesSettings(device="cpu", predictability=False), workspace),
    }


@pytest.fixture(scope="module")
def made(stages: dict[str, Make], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One artifact of each kind."""
    workspace = Workspace(tmp_path_factory.mktemp("made") / "ws")
    for make in stages.values():
        make(workspace)
    return workspace


def copy(workspace: Workspace, to: Path) -> Workspace:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(workspace.folder, to)
    return Workspace(to)


@pytest.fixture(scope="module")
def unfinished(
    made: Workspace, stages: dict[str, Make], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Workspace]:
    """By kind, a workspace in which the stage was interrupted when all of its files were written."""

    def die(_: Work) -> None:
        raise KeyboardInterrupt

    found = {}
    for kind, make in stages.items():
        workspace = copy(made, tmp_path_factory.mktemp(kind) / "ws")
        workspace.remove(workspace.find(kind).folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Work, "entries", die)
            with pytest.raises(KeyboardInterrupt):
                make(workspace)
        found[kind] = workspace
    return found


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["activations", "crosscoder", "features"])
def test_damaged_unfinished_work_is_made_again(
    kind: str,
    damage: str,
    made: Workspace,
    unfinished: dict[str, Workspace],
    stages: dict[str, Make],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = made.find(kind)
    begun = unfinished[kind]
    named = 0
    for path in files_of(begun.folder / ".partial"):
        workspace = copy(begun, tmp_path / "ws")
        damaged = workspace.folder / path.relative_to(begun.folder)
        damaged.write_bytes(DAMAGES[damage](path.read_bytes()))
        capsys.readouterr()
        found = stages[kind](workspace)
        assert found.manifest.digest == expected.manifest.digest, damaged
        assert (found.files(), found.problems()) == (expected.files(), []), damaged
        named += f"{damaged} is damaged: it is dropped" in capsys.readouterr().err
    assert named >= {"activations": 6, "crosscoder": 1, "features": 4}[kind]


def test_two_shards_that_changed_places_are_written_again(
    made: Workspace, unfinished: dict[str, Workspace], stages: dict[str, Make], tmp_path: Path
) -> None:
    workspace = copy(unfinished["activations"], tmp_path / "ws")
    (partial,) = workspace.partials()
    one, two = (partial / "shards" / f"0000{shard}.b.h5" for shard in (0, 1))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    assert stages["activations"](workspace).manifest.digest == made.find("activations").manifest.digest


def test_only_the_shard_that_was_damaged_is_written_again(
    unfinished: dict[str, Workspace], stages: dict[str, Make], tmp_path: Path
) -> None:
    workspace = copy(unfinished["activations"], tmp_path / "ws")
    (partial,) = workspace.partials()
    numbers = {path: path.stat().st_ino for path in (partial / "shards").iterdir()}
    (damaged := partial / "shards" / "00001.a.h5").write_bytes(b"")
    os.link(damaged, tmp_path / "held")  # its inode is not given out again
    artifact = stages["activations"](workspace)
    kept = {
        path for path, number in numbers.items() if (artifact.folder / "shards" / path.name).stat().st_ino == number
    }
    assert kept == numbers.keys() - {damaged}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_published_file_is_named_by_verify_and_by_who_reads_it(
    damage: str, made: Workspace, tmp_path: Path
) -> None:
    for artifact in made.artifacts():
        for name in artifact.files():
            workspace = copy(made, tmp_path / "ws")
            path = workspace.folder / artifact.folder.relative_to(made.folder) / name
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
            read = workspace.find(artifact.kind)
            assert [one.partition(":")[0] for one in read.problems()] == [name]
            with pytest.raises(DamagedError, match=f"{path}.*workspace remove {read.ref} --force"):
                list(uses(read, name))


def uses(artifact: Artifact, *names: str) -> Iterator[object]:
    """What the stages that come after it read, and files that none of them does, like figures and logs."""
    if artifact.kind == "activations":
        store = ActivationStore(artifact)
        for block in store.blocks(7):
            yield store.read(block)
            yield store.plan(block.shard)
    elif artifact.kind == "crosscoder":
        yield Crosscoder.from_pretrained(artifact)
    yield from map(artifact.file, names)


def test_files_above_the_limit_for_the_cache_are_checked_where_they_are_read(
    made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeldiff.workspace.artifact.CHEAP_BYTES", 0)
    workspace = copy(made, tmp_path / "ws")
    for ref in ("activations:1/shards/00001.a.h5", "crosscoder:1/model.safetensors"):
        ref, _, name = ref.partition("/")
        path = workspace.resolve(ref).folder / name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(DamagedError, match=str(path)):
            list(uses(workspace.resolve(ref)))


def test_a_file_is_read_once_by_a_process_and_again_when_it_changed(
    made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = copy(made, tmp_path / "ws").find("crosscoder")
    path = artifact.file("config.json")
    with monkeypatch.context() as patch:
        patch.setattr("modeldiff.workspace.artifact.blake3_file", lambda _: pytest.fail("it is read again"))
        assert artifact.file("config.json") == path
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(DamagedError, match=r"config\.json: is damaged"):
        artifact.file("config.json")


def test_a_piece_is_compared_once_and_a_later_read_takes_no_more_than_it_asks_for(
    made: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ActivationStore(made.find("activations"))
    expected = store.read_side("a", store.blocks(48)[0])
    with monkeypatch.context() as patch:
        patch.setattr("modeldiff.workspace.bits.blake3", lambda _: pytest.fail("it is compared again"))
        parts = [store.read_side("a", block) for block in store.blocks(7) if block.shard == 0]
    assert torch.equal(torch.cat(parts), expected)
