"""What a second process brings: stages by one process on one core, by one on both, and by two of torchrun (gloo).

    python -m tests.benchmarks.processes [--rounds 3]

The bundled pair of models, the same work in turn; medians of the seconds that manifests tell, which leave out the start
of processes. What one process with one thread makes and what two make has to be equal, byte for byte, but for logs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B
from modeldiff.workspace import Artifact, Workspace
from tests.benchmarks.__main__ import machine

PYTHON = [sys.executable, "-m"]
TORCHRUN = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
# (what starts modeldiff, cores, environment)
WAYS = {
    "one, one core": (PYTHON, {0}, {"OMP_NUM_THREADS": "1"}),
    "one, both cores": (PYTHON, {0, 1}, {}),
    "two": (TORCHRUN, {0, 1}, {"OMP_NUM_THREADS": "1"}),
}
PAIRS, SHARD_PAIRS, FEATURES, STEPS, PLACES = 400_000, 20_000, 4096, 60, 1500


def commands(texts: Path) -> dict[str, list[str]]:
    """By kind of artifact, what makes it from those before it. The crosscoder is for the stage after it."""
    models = ["--model-a", str(MODEL_A), "--model-b", str(MODEL_B), "--texts", str(texts)]
    return {
        "activations": ["harvest", *models, "--pairs", str(PAIRS), "--shard-pairs", str(SHARD_PAIRS)],
        "crosscoder": ["train", "--features", str(FEATURES), "--k", "32", "--steps", str(STEPS)],
        "features": ["features"],
        "continuations": ["contrast", "--no-cause", "--places", str(PLACES), "--contexts", "everywhere", *models],
    }


def made(kind: str, command: list[str], way: str, folder: Path) -> Artifact:
    """The artifact of one more run, in a copy of the workspace that it starts from."""
    started_by, cores, environment = WAYS[way]
    workspace = folder / "run"
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(folder / "ws", workspace)
    subprocess.run(
        [*started_by, "modeldiff", "--workspace", str(workspace), *command],
        check=True, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    return Workspace(workspace).find(kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    click.echo(machine())
    with TemporaryDirectory() as name:
        folder = Path(name)
        Workspace(folder / "ws").create()
        for kind, command in commands(write_probing_corpus(folder / "texts.jsonl")).items():
            compared = kind != "crosscoder"
            seconds, contents = {way: list[float]() for way in WAYS}, dict[str, object]()
            for _ in range(rounds if compared else 1):
                for way in WAYS if compared else ["one, both cores"]:
                    one = made(kind, command, way, folder)
                    seconds[way].append(one.manifest.seconds)
                    contents[way] = {name: what for name, what in one.manifest.files.items() if name[:5] != "logs/"}
            shutil.rmtree(folder / "ws")
            (folder / "run").rename(folder / "ws")
            if compared:
                took = {way: statistics.median(values) for way, values in seconds.items()}
                times = ", ".join(
                    f"{way} {one:.1f} s ({took['one, one core'] / one:.2f} x)" for way, one in took.items()
                )
                equal = contents["one, one core"] == contents["two"]
                click.echo(f"{kind}: {times}; {'equal' if equal else 'DIFFERENT'} bytes")


if __name__ == "__main__":
    main()
