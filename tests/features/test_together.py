"""`torchrun ... -m modeldiff features`: several processes find what one finds, to the bit, also when one is lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modeldiff.features.scan as scan_module
from modeldiff.features.run import run
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Artifact, Workspace
from tests.features.made_crosscoder import made_pair
from tests.processes import DEADLINE, two

Dying = Callable[..., list[Any]]
pytestmark = pytest.mark.usefixtures("small_blocks")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMAND = ["features", "--device", "cpu", "--examples", "3", "--context", "2"]
SETTINGS = FeaturesSettings(device="cpu", examples=3, context=2)


def made(workspace: Workspace) -> Workspace:
    """Documents of 50 pairs in shards of 130, so that some lie in two."""
    made_pair(workspace, 1200, shard_pairs=130)
    return workspace


@pytest.fixture
def straight(tmp_path: Path) -> Artifact:
    """What one process makes."""
    return run(SETTINGS, made(Workspace(tmp_path / "straight")))


def test_torchrun_makes_the_bytes_of_one_process(workspace: Workspace, straight: Artifact) -> None:
    done = subprocess.run(
        [*TORCHRUN, "-m", "modeldiff", "--workspace", str(made(workspace).folder), *COMMAND],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    artifact = workspace.find("features")
    assert artifact.manifest.digest == straight.manifest.digest
    assert artifact.metrics == straight.metrics
    assert artifact.manifest.environment["processes"] == 2
    assert artifact.problems() == []
    assert workspace.partials() == []
    assert done.stderr.count("features:1 is ready") == 1


@pytest.mark.parametrize(("victim", "file", "missing"), [(0, 5, 3), (1, 4, 4), (1, 12, 0), (0, 15, 0)])
def test_a_killed_process_ends_the_run_and_the_same_command_continues(
    workspace: Workspace, straight: Artifact, tmp_path: Path, victim: int, file: int, missing: int, dying: Dying
) -> None:
    """In the pass (two files for each of ten shards) or behind it, then with one process."""
    args = ["--workspace", str(made(workspace).folder), *COMMAND]
    results = two(args, tmp_path, {victim: file})
    code, lines = results[1 - victim]
    assert results[victim][0] == -signal.SIGKILL
    assert code == 1
    assert lines[-1].startswith("modeldiff: another process of this run ended")
    assert not any("Traceback" in line for line in lines)
    assert workspace.artifacts("features") == []
    taken = dying(scan_module, "_origins")
    artifact = run(SETTINGS, workspace)
    assert artifact.manifest.digest == straight.manifest.digest
    assert len(taken) == missing, "what the two had found is used"


def test_two_processes_continue_what_one_has_begun(
    workspace: Workspace, straight: Artifact, tmp_path: Path, dying: Dying
) -> None:
    made(workspace)
    dying(scan_module, "_checkpoint", 4)
    with pytest.raises(KeyboardInterrupt):
        run(SETTINGS, workspace)
    args = ["--workspace", str(workspace.folder), *COMMAND]
    assert [code for code, _ in two(args, tmp_path, {})] == [0, 0]
    assert workspace.find("features").manifest.digest == straight.manifest.digest
    # And now that it is there, nobody works.
    (code, lines), other = two(args, tmp_path, {})
    assert code == 0
    assert "features:1 is up to date" in lines
    assert other == (0, [])


def test_what_is_damaged_is_found_anew(workspace: Workspace, straight: Artifact, dying: Dying) -> None:
    """A sample, and with it the checkpoint of its process."""
    made(workspace)
    dying(scan_module, "_checkpoint", 4)
    with pytest.raises(KeyboardInterrupt):
        run(SETTINGS, workspace)
    (partial,) = workspace.partials()
    path = partial / "resume/codes/00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    taken = dying(scan_module, "_origins")
    assert run(SETTINGS, workspace).manifest.digest == straight.manifest.digest
    assert len(taken) == 10
