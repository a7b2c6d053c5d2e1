"""Is modeldiff right on a GPU, and how fast? `python -m tests.benchmarks.gpu [--dry] [--out FILE] [--limit SECONDS]
[--only PHASE ...]`, in a clone: under eight minutes on one H100 or H200, the most important phases first.

All rows go into one JSON file, which is written anew after each of them: a run that is stopped keeps what it has. Each
phase is guarded, and none begins that might pass the limit. Exit code: 1 when a row about correctness is wrong (against
the CPU or a formula, with the tolerance that it names) or something raises; 2 without a device; a figure that misses
what is wanted is marked and decides nothing.

--dry runs the same code at tiny sizes on the CPU in both places, with Triton's interpreter where it is installed, and
measures nothing: for a change of this code, and in CI.

A machine with a GPU may lack packages and a network. Only the clone has to be there, nothing of it installed: run the
command in its root. What Python cannot import (`python -c "import modeldiff.workspace"` names it) brings along as
wheels: `pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 -d wheels
blake3` elsewhere, then there `pip install --no-index --no-deps --target site wheels/*.whl` and `PYTHONPATH=site`.
Batches differ in size: with `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True` less memory is lost to that.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Before torch, transformers and Triton are imported: the hub is not asked for models that are here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "--dry" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when it is imported

import torch

from modeldiff.console import echo
from modeldiff.workspace.stage import environment
from tests.benchmarks.gpu import correct, passes, speed
from tests.benchmarks.gpu.harness import DRY, FULL, Bench, Phase
from tests.benchmarks.gpu.stages import Stages

LIMIT = 465.0
# In order, with the seconds that each may take on the device.
ARITHMETIC = {"kernels": (correct.kernels, 30), "steps": (correct.steps, 30)}
STAGES = {
    "harvest": 20, "features": 30, "stitch": 10, "words": 10, "contrast": 50, "steer": 15, "evaluate": 15, "train": 20,
}  # fmt: skip
SPEED = {
    "ceilings": (speed.ceilings, 10), "step": (speed.step, 60), "parts": (speed.parts, 30), "small": (speed.small, 15),
    "codes": (passes.codes, 15), "pass": (passes.features, 70), "capture": (passes.harvest, 80),
}  # fmt: skip
NAMES = [*ARITHMETIC, *STAGES, *SPEED]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on the CPU, nothing measured")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the file of rows (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all phases (default: %(default)g)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="PHASE", help=", ".join(NAMES))
    asked = parser.parse_args()
    if not asked.dry and not torch.cuda.is_available():
        echo("torch finds no CUDA device here; --dry runs on the CPU")
        return 2
    device, sizes = (torch.device("cpu"), DRY) if asked.dry else (torch.device("cuda", 0), FULL)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, sizes, Path(folder), asked.out, about_machine(device), asked.dry, asked.limit)
        bench.run([one for one in phases(bench) if one.name in asked.only])
    missed = [row.what for row in bench.rows if row.ok is False and not row.decides]
    echo(f"wrong: {'; '.join(bench.wrong) or 'nothing'}", f"missed: {'; '.join(missed) or 'nothing'}")
    return 1 if bench.wrong else 0


def phases(bench: Bench) -> list[Phase]:
    stages = Stages(bench)
    of_stages = {name: (lambda _, name=name: getattr(stages, name)(), seconds) for name, seconds in STAGES.items()}
    return [Phase(name, *what) for name, what in {**ARITHMETIC, **of_stages, **SPEED}.items()]


def about_machine(device: torch.device) -> dict[str, Any]:
    """The device and what runs on it, by name."""
    found: dict[str, Any] = {"device": "CPU", "threads": torch.get_num_threads(), **environment()}
    found["packages"]["triton"] = None
    with suppress(PackageNotFoundError):
        found["packages"]["triton"] = version("triton")
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"device": about.name, "device_memory_gb": about.total_memory / 1e9, "cuda": torch.version.cuda}
        found |= {"capability": [about.major, about.minor], "driver": _driver()}
    return found


def _driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
