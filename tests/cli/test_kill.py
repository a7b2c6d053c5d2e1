"""`kill -9` at random moments: the same command continues, and the artifact is the one an uninterrupted run makes."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.workspace import Artifact, Workspace
from tests.processes import CONTEXT
from tests.tiny_models import save_tiny

KILLS = 10


def command(args: list[str]) -> None:
    import torch

    from modeldiff.cli.main import run

    torch.set_num_threads(1)
    run(args)


def started(args: list[str]) -> tuple[Any, float]:
    process = CONTEXT.Process(target=command, args=(args,))
    process.start()
    return process, time.monotonic()


def run_to_the_end(args: list[str]) -> float:
    process, began = started(args)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def kill_and_compare(workspace: Path, args: list[str], kind: str) -> Artifact:
    """Kill `args` KILLS times while it works, let it finish, and compare with a straight run. The artifact stays."""
    args = ["--workspace", str(workspace), *args]
    run_to_the_end(["--version"])  # makes the forkserver import everything, so that the first run is not longer
    seconds = run_to_the_end(args)
    straight = Workspace(workspace).find(kind)
    expected = straight.manifest.digest, straight.files()

    def take_away() -> None:
        made = Workspace(workspace).find(kind)
        assert (made.manifest.digest, made.files()) == expected
        Workspace(workspace).remove(made.folder)

    take_away()
    moments = random.Random(kind)
    killed = finished = 0
    while killed < KILLS:
        process, began = started(args)
        process.join(moments.uniform(0.02, 0.6) * seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            continue
        assert process.exitcode == 0
        finished += 1
        assert finished < 50
        seconds = min(seconds, time.monotonic() - began)  # the machine may have got faster since
        take_away()
    run_to_the_end(args)
    made = Workspace(workspace).find(kind)
    assert (made.manifest.digest, made.files()) == expected
    assert made.problems() == []
    assert Workspace(workspace).partials() == []
    return made


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill") / "ws"


@pytest.fixture(scope="module")
def harvested(workspace: Path) -> Artifact:
    folder = workspace.parent
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefgh", k=letters.randint(2, 7))) for _ in range(200)]
    texts = [" ".join(letters.choices(words, k=60)) + "." for _ in range(120)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    model_a = save_tiny(folder / "a", "gpt2", texts=texts, width=32)
    model_b = save_tiny(folder / "b", "llama", texts=texts, width=48, vocab_size=360)
    args = [
        "harvest", "--model-a", str(model_a), "--model-b", str(model_b), "--texts", str(folder / "texts.txt"),
        "--pairs", "6000", "--shard-pairs", "800", "--context", "64", "--batch-tokens", "256", "--device", "cpu",
    ]  # fmt: skip
    return kill_and_compare(workspace, args, "activations")


TRAIN = ["train", "--features", "128", "--k", "8", "--steps", "120", "--batch", "512", "--device", "cpu"]
CONTRAST = ["contrast", "--no-cause", "--places", "60", "--tokens", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(workspace: Path, harvested: Artifact) -> Artifact:
    return kill_and_compare(workspace, [*TRAIN, "--checkpoint-seconds", "0.1"], "crosscoder")


def test_harvest(harvested: Artifact) -> None:
    assert harvested.metrics["pairs"] == 6000


def test_train(trained: Artifact) -> None:
    assert "model.safetensors" in trained.files()


def test_features(workspace: Path, trained: Artifact) -> None:
    assert trained.ref
    kill_and_compare(workspace, ["features", "--exclusive", "A"], "features")


def test_continuations(workspace: Path, harvested: Artifact) -> None:
    """Of the models and texts of the harvest; the contrast that comes with them is left out."""
    models = [word for side in "ab" for word in (f"--model-{side}", harvested.settings[f"model_{side}"])]
    args = [*CONTRAST, "--contexts", "everywhere", *models, "--texts", *harvested.settings["texts"]]
    folder = workspace.parent / "continuations"
    kill_and_compare(folder, args, "continuations")
    assert Workspace(folder).find("contrast").manifest.inputs["continuations"].label.startswith("continuations:")


def test_contrast(workspace: Path, trained: Artifact) -> None:
    made = kill_and_compare(workspace, [*CONTRAST, "--least", "4"], "contrast")
    assert made.manifest.inputs["crosscoder"].label == trained.ref


def test_a_kill_between_manifest_and_rename_is_survived(
    workspace: Path, harvested: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment where the work is complete but not yet visible."""
    from modeldiff.cli.main import run

    args = ["--workspace", str(workspace), *TRAIN, "--seed", "1"]
    rename: Callable[[Path, Path], Path] = Path.rename

    def die(self: Path, target: Path) -> Path:
        if target.parent.name == "crosscoder":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(SystemExit, match="130"):
        run(args)
    before = [a.ref for a in Workspace(workspace).artifacts("crosscoder")]
    monkeypatch.undo()
    run_to_the_end(args)
    assert len(Workspace(workspace).artifacts("crosscoder")) == len(before) + 1
    assert Workspace(workspace).partials() == []
