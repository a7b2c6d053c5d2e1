"""How much memory is free on this machine and its devices."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO, _CGROUPS, _OWN_CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory() -> int:
    """Bytes that this machine can give to its processes, and no more than this container may still take; all that there
    is where the system does not say (macOS)."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _MEMINFO.exists():
        sizes = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        available = int(sizes["MemAvailable"].split()[0]) * 1024
    # Control groups (version 2): the line is "0::/path"; in a container the path may be that of the host.
    own = next((line for line in _read(_OWN_CGROUP) if line.startswith("0::")), "0::/")
    group = _CGROUPS / own[3:].lstrip("/")
    for folder in (group, *group.parents):
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if used and limit[0] != "max":
            # Pages of files that were read are given back when they are needed.
            pages = dict(line.split() for line in _read(folder / "memory.stat"))
            cached = int(pages.get("inactive_file", 0)) + int(pages.get("active_file", 0))
            available = min(available, int(limit[0]) - int(used[0]) + cached)
    return available


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def free_on(device: torch.device) -> int:
    if device.type == "cuda":
        # What torch keeps for this process without using it is free to it, too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()
