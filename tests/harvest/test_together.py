"""`torchrun ... -m modeldiff harvest`: several processes make what one makes, and a lost one costs only its shard."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modeldiff.harvest.run import run
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.ranks import Ranks, ranks
from tests.processes import DEADLINE, two

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


@pytest.fixture
def settings(make_settings) -> HarvestSettings:
    return make_settings(pairs=500, shard_pairs=100)


@pytest.fixture
def straight(settings: HarvestSettings, tmp_path: Path) -> Artifact:
    """What one process makes."""
    return run(settings, Workspace(tmp_path / "straight"))


def command(settings: HarvestSettings, workspace: Workspace) -> list[str]:
    """The arguments of `modeldiff` that mean these settings."""
    options = [
        text
        for name in ("model_a", "model_b", "pairs", "shard_pairs", "context", "device", "batch_tokens", "storage")
        for text in ("--" + name.replace("_", "-"), str(getattr(settings, name)))
    ]
    return ["--workspace", str(workspace.folder), "harvest", *options, "--texts", *settings.texts]


def content(artifact: Artifact) -> tuple[str, list[str]]:
    """What identifies the files, timing logs left out."""
    return artifact.manifest.digest, [name for name in artifact.files() if not name.startswith("logs/")]


def test_torchrun_makes_the_bytes_of_one_process(
    settings: HarvestSettings, workspace: Workspace, straight: Artifact
) -> None:
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node", "2", "-m", "modeldiff", *command(settings, workspace)],
        # As many threads as here: they decide the order of sums.
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    artifact = workspace.find("activations")
    assert content(artifact) == content(straight)
    assert artifact.metrics == straight.metrics
    assert artifact.problems() == []
    assert workspace.partials() == []
    # Both worked, one spoke.
    logs = {name: len(artifact.file(name).read_text().splitlines()) for name in artifact.files("logs/")}
    assert logs == {"logs/capture.jsonl": 6, "logs/capture-00001.jsonl": 4}
    assert done.stderr.count("activations:1 is ready") == 1
    assert done.stdout.count("next: modeldiff train") == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_the_same_command_continues(
    settings: HarvestSettings, workspace: Workspace, straight: Artifact, tmp_path: Path, victim: int, capsys
) -> None:
    # Rank 0 keeps five plans first; each dies with its second file of rows.
    results = two(command(settings, workspace), tmp_path, {victim: 7 if victim == 0 else 2})
    code, lines = results[1 - victim]
    assert results[victim][0] == -signal.SIGKILL
    assert code == 1
    assert lines[-1].startswith("modeldiff: another process of this run ended")
    assert lines[-1].endswith("the same command continues")
    assert not any("Traceback" in line for line in lines)
    assert workspace.artifacts() == []
    (partial,) = workspace.partials()
    kept = {path.name: path.stat().st_mtime_ns for path in (partial / "shards").glob("*.[ab].h5")}
    assert kept
    # With another number of processes, too.
    capsys.readouterr()
    artifact = run(settings, workspace)
    assert "continuing what was begun" in capsys.readouterr().err
    assert content(artifact) == content(straight)
    # What was finished is not made again.
    assert {name: (artifact.folder / "shards" / name).stat().st_mtime_ns for name in kept} == kept


def test_two_processes_continue_what_one_began(
    settings: HarvestSettings, workspace: Workspace, straight: Artifact, tmp_path: Path, interrupted_at
) -> None:
    interrupted_at(lambda: run(settings, workspace), "00002.a.h5")
    assert [code for code, _ in two(command(settings, workspace), tmp_path, {})] == [0, 0]
    assert content(workspace.find("activations")) == content(straight)
    # And now that it is there, nobody works.
    (code, lines), other = two(command(settings, workspace), tmp_path, {})
    assert (code, lines[0]) == (0, "activations:1 is up to date")
    assert other == (0, [])
    assert len(workspace.artifacts()) == 1


def test_an_error_of_rank_0_is_said_once(settings: HarvestSettings, workspace: Workspace, tmp_path: Path) -> None:
    args = command(settings, workspace)
    args[args.index("--texts") + 1] = "none.txt"
    (code, lines), (other_code, other_lines) = two(args, tmp_path, {})
    assert code == 2
    assert lines == ["modeldiff: there is no text file none.txt: expected a .txt, .jsonl or .parquet file, or hf:NAME"]
    assert other_code == 1
    assert len(other_lines) == 1
    assert "another process of this run ended" in other_lines[0]


def test_every_piece_of_work_is_somebodys() -> None:
    assert [Ranks(rank, 3).mine(list(range(7))) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert ranks() == Ranks(0, 1, 0), "without a launcher"
