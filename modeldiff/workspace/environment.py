"""Where an artifact was made: package versions, platform, commit of the code, memory used."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from modeldiff import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "h5py", "numpy", "safetensors")


def environment() -> dict[str, Any]:
    """Facts for the manifest that do not depend on the stage."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"modeldiff": __version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    # Linux's rusage starts with what the parent held when it started this process; VmHWM does not.
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def _commit() -> str | None:
    """The commit of the checkout this code runs from, None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
