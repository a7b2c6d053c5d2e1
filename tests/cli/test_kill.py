"""`kill -9` at random moments: the same command continues, and the artifact is the one an uninterrupted run makes."""

import random
import time
from collections.abc import Callable
from pathlib import Path

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


def nothing() -> None:
    """Makes the forkserver import everything, so that the first run is not measured longer than the others."""


def run_to_the_end(args: list[str]) -> None:
    process = CONTEXT.Process(target=command, args=(args,))
    process.start()
    process.join()
    assert process.exitcode == 0


def kill_and_compare(workspace: Path, args: list[str], kind: str) -> Artifact:
    """Kill `args` KILLS times while it works, let it finish, and compare with a straight run. The artifact stays."""
    args = ["--workspace", str(workspace), *args]
    first = CONTEXT.Process(target=nothing)
    first.start()
    first.join()
    began = time.monotonic()
    run_to_the_end(args)
    seconds = time.monotonic() - began
    straight = Workspace(workspace).find(kind)
    digest, files = straight.manifest.digest, straight.files()
    Workspace(workspace).remove(straight.folder)
    moments = random.Random(kind)
    killed = finished = 0
    while killed < KILLS:
        process = CONTEXT.Process(target=command, args=(args,))
        process.start()
        began = time.monotonic()
        process.join(moments.uniform(0.02, 0.6) * seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
            continue
        assert process.exitcode == 0
        finished += 1
        seconds = min(seconds, time.monotonic() - began)  # the machine may have got faster since
        made = Workspace(workspace).find(kind)
        assert (made.manifest.digest, made.files()) == (digest, files)
        Workspace(workspace).remove(made.folder)
        assert finished < 50
    run_to_the_end(args)
    made = Workspace(workspace).find(kind)
    assert (made.manifest.digest, made.files()) == (digest, files)
    assert made.problems() == []
    assert Workspace(workspace).partials() == []
    return made


@pytest.fixture(scope="module")
def harvest_args(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefgh", k=letters.randint(2, 7))) for _ in range(200)]
    texts = [" ".join(letters.choices(words, k=60)) + "." for _ in range(120)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    model_a = save_tiny(folder / "a", "gpt2", texts=texts, width=32)
    model_b = save_tiny(folder / "b", "llama", texts=texts, width=48, vocab_size=360)
    return [
        "harvest", "--model-a", str(model_a), "--model-b", str(model_b), "--texts", str(folder / "texts.txt"),
        "--pairs", "6000", "--shard-pairs", "800", "--context", "64", "--batch-tokens", "256", "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill") / "ws"


@pytest.fixture(scope="module")
def harvested(workspace: Path, harvest_args: list[str]) -> Artifact:
    return kill_and_compare(workspace, harvest_args, "activations")


TRAIN = ["train", "--features", "128", "--k", "8", "--steps", "120", "--batch", "512", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(workspace: Path, harvested: Artifact) -> Artifact:
    return kill_and_compare(workspace, [*TRAIN, "--checkpoint-seconds", "0.1"], "crosscoder")


def test_harvest(harvested: Artifact) -> None:
    assert harvested.metrics["pairs"] == 6000


def test_train(trained: Artifact) -> None:
    assert trained.files(suffix=".safetensors") == ["model.safetensors"]


def test_features(workspace: Path, trained: Artifact) -> None:
    assert trained.ref
    kill_and_compare(workspace, ["features", "--exclusive", "A"], "features")


@pytest.fixture(scope="module")
def continued(workspace: Path, harvested: Artifact) -> Artifact:
    """Continuations of the models and texts of the harvest; the contrast that comes with them is left out."""
    folder = workspace.parent / "continuations"
    args = [*CONTRAST, "--contexts", "everywhere"]
    for option, name in (("--model-a", "model_a"), ("--model-b", "model_b")):
        args += [option, harvested.settings[name]]
    kill_and_compare(folder, [*args, "--texts", *harvested.settings["texts"]], "continuations")
    return Workspace(folder).find("contrast")


CONTRAST = ["contrast", "--no-cause", "--places", "60", "--tokens", "4", "--device", "cpu"]


def test_continuations(continued: Artifact) -> None:
    assert continued.manifest.inputs["continuations"].label.startswith("continuations:")


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
    with pytest.raises(SystemExit) as caught:
        run(args)
    assert caught.value.code == 130
    before = [a.ref for a in Workspace(workspace).artifacts("crosscoder")]
    monkeypatch.undo()
    run_to_the_end(args)
    assert len(Workspace(workspace).artifacts("crosscoder")) == len(before) + 1
    assert Workspace(workspace).partials() == []
