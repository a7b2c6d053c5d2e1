"""Peak memory of `modeldiff train` against the sum of what it cannot do without.

What a process that has only imported the same modules takes is subtracted.

Legend: N pairs, D width of one model, C concepts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import modeldiff
from modeldiff.workspace import Workspace
from tests.benchmarks.rows import Options, Row

_CODE = Path(modeldiff.__file__).parents[1]
_TARGET = 1.15
_WIDTH, _FEATURES, _K, _BATCH, _STEPS, _BUFFER_MIB = 512, 8192, 64, 2048, 24, 64
# Three times what fits the buffer (bfloat16 on both sides): the next rows are read while a step runs.
_PAIRS = 3 * (_BUFFER_MIB << 20) // (2 * 2 * _WIDTH)
_FLOAT32 = 4
# Parameters, their gradients, and the two moments of Adam.
_COPIES = 4

# Runs a command and prints the largest resident memory that the kernel saw. Linux counts, for a fresh process, what its
# parent held when it was started, so the parent must be a small one: this, not the process that imports torch.
_LAUNCHER = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, used = os.wait4(child, 0)
print(used.ru_maxrss)
sys.exit(abs(os.waitstatus_to_exitcode(status)))
"""

# Runs a command of modeldiff and prints the modules that were loaded, in order.
_MODULES = """
import json, sys
from modeldiff.cli.main import run
try:
    run(sys.argv[1:])
except SystemExit as end:
    if end.code:
        raise
print(json.dumps(list(sys.modules)))
"""

# Imports the modules named, in order, and multiplies two small matrices.
_ONLY_IMPORTS = """
import importlib, json, sys
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # made by the program itself, not a module that can be imported
import torch
torch.ones(8, 8) @ torch.ones(8, 8)
"""


def peak(command: list[str], cwd: Path) -> int:
    """Largest resident memory, in bytes, of a process that runs `command` in the folder `cwd`: of it alone.

    Raises:
        RuntimeError: the command failed; with the end of what it wrote to stderr.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
    return int(_run(command, cwd, launcher)) * (
        1 if sys.platform == "darwin" else 1024
    )  # macOS counts bytes, Linux kilobytes


def rows(options: Options) -> Iterator[Row]:
    """The peak's share of the sum that is needed anyway."""
    what = f"modeldiff train, peak memory: d {_WIDTH}+{_WIDTH}, {_FEATURES} features, k {_K}, batch {_BATCH}"
    if not sys.platform.startswith("linux"):
        yield Row(what, None, _TARGET, "", False, "needs Linux")
        return
    workspace, modules = _activations(options.folder), options.folder / "modules.json"
    train = _train(workspace)
    peak_bytes = peak([sys.executable, "-m", "modeldiff", *train], _CODE)
    modules.write_text(_run([sys.executable, "-c", _MODULES, *train, "--force"], _CODE).splitlines()[-1])
    imports = peak([sys.executable, "-c", _ONLY_IMPORTS, str(modules)], _CODE)

    needed = _needed(Workspace(workspace).find("crosscoder").metrics["parameters"])
    total = sum(needed.values())
    parts = ", ".join(f"{name} {_mib(size)}" for name, size in needed.items())
    yield Row(
        what,
        (peak_bytes - imports) / total,
        _TARGET,
        unit="",
        at_least=False,
        note=f"{_mib(peak_bytes)} - {_mib(imports)} MiB of imports, against {_mib(total)} ({parts})",
    )


def _train(workspace: Path) -> list[str]:
    """24 steps: each is logged, checkpoints are written during the run and at its end."""
    sizes = {"features": _FEATURES, "k": _K, "batch": _BATCH, "steps": _STEPS, "buffer-mib": _BUFFER_MIB}
    often = {"checkpoint-seconds": 1}
    given = [word for name, value in (sizes | often).items() for word in (f"--{name}", str(value))]
    return ["--workspace", str(workspace), "train", *given]


def _needed(parameters: int) -> dict[str, int]:
    """Bytes of what a step cannot do without."""
    return {
        "parameters, gradients, Adam": _COPIES * _FLOAT32 * parameters,
        "pre-activations": _FLOAT32 * _BATCH * _FEATURES,
        "buffer": _BUFFER_MIB << 20,
    }


def _activations(folder: Path) -> Path:
    """A workspace with imported activations: each pair is a few of many concepts, which both sides have, and noise."""
    random = np.random.default_rng(0)
    concepts, active = 4096, 16
    files = {}
    for side in "ab":
        files[side] = folder / f"{side}.npy"
        directions_CD = random.standard_normal((concepts, _WIDTH), dtype=np.float32)
        drawn = np.random.default_rng(1)  # the same concepts on both sides
        x_ND = np.lib.format.open_memmap(files[side], "w+", np.float16, (_PAIRS, _WIDTH))
        for start in range(0, _PAIRS, _BATCH):
            n = min(_BATCH, _PAIRS - start)
            which = drawn.integers(concepts, size=(n, active))
            strength = drawn.exponential(size=(n, active, 1)).astype(np.float32)
            noise = random.standard_normal((n, _WIDTH), dtype=np.float32)
            x_ND[start : start + n] = (directions_CD[which] * strength).sum(axis=1) + noise
        x_ND.flush()
    workspace = folder / "ws"
    arrays = ["--import-a", str(files["a"]), "--import-b", str(files["b"])]
    _python("-m", "modeldiff", "--workspace", str(workspace), "harvest", *arrays)
    return workspace


def _python(*args: str) -> None:
    _run([sys.executable, *args], _CODE)


def _run(command: list[str], cwd: Path, launcher: Sequence[str] = ()) -> str:
    """What a command, or its launcher, prints; RuntimeError, with the end of its stderr, when it fails."""
    done = subprocess.run([*launcher, *command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"
