"""examples/cluster/modeldiff.sbatch, with doubles of Slurm: two "machines" are two agents of torchrun on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from modeldiff.harvest.run import run
from modeldiff.workspace import Workspace
from tests.harvest.test_together import command, content
from tests.processes import DEADLINE

SCRIPT = Path(__file__).parents[2] / "examples/cluster/modeldiff.sbatch"
# srun's own options go; what is left runs once for each machine.
DOUBLES = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@" & one=$!; "$@" & wait $! && wait $one',
    "scontrol": "printf '%s\\n' localhost elsewhere",
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
}


def test_two_machines_harvest_what_one_process_does(make_settings, workspace: Workspace, tmp_path: Path) -> None:
    for name, body in DOUBLES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    settings = make_settings(pairs=300, shard_pairs=100)
    slurm = {"JOB_ID": str(os.getpid()), "JOB_NUM_NODES": "2", "JOB_NODELIST": "local[1-2]", "CPUS_PER_TASK": "1"}
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **{f"SLURM_{k}": v for k, v in slurm.items()}}
    env.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [SCRIPT, *command(settings, workspace)], env=env, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr
    artifact = workspace.find("activations")
    assert artifact.manifest.environment["processes"] == 2
    assert content(artifact) == content(run(settings, Workspace(tmp_path / "alone")))
    assert done.stderr.count("activations:1 is ready") == 1, "one of them speaks"
