"""How much memory is free on this machine and its devices."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

_MEMINFO, _CGROUPS, _OWN_CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory() -> int:
    """Bytes that this machine or container can still give; all that there is where the system does not say (macOS)."""
    kibibytes = _found(_MEMINFO, r"MemAvailable:\s*(\d+)")
    available = int(kibibytes) * 1024 if kibibytes else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Control groups (version 2): the line is "0::/path"; in a container the path may be that of the host.
    group = _CGROUPS / _found(_OWN_CGROUP, "0::/(.*)")
    for folder in (group, *group.parents):
        limit, used = (_found(folder / f"memory.{name}", r"(\d+)") for name in ("max", "current"))
        if limit and used:
            # Pages of files that were read are given back when they are needed.
            pages = (_found(folder / "memory.stat", rf"{name}_file (\d+)") for name in ("inactive", "active"))
            available = min(available, int(limit) - int(used) + sum(int(one or 0) for one in pages))
    return available


def _found(path: Path, pattern: str) -> str:
    """What the group of the pattern is in the line that begins with it; empty: there is no such file or line."""
    try:
        match = re.search(f"^{pattern}", path.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


def free_on(device: torch.device) -> int:
    """Bytes free on a device with a memory of its own."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.cuda.mem_get_info(device)[0]
