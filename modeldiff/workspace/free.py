"""How much memory is free on this machine and its devices."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_MEMINFO, _CGROUPS, _OWN_CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_on(device: torch.device) -> int:
    """Bytes free on a device: of this machine if it is the CPU."""
    if device.type == "cuda":
        # What torch keeps for this process without using it is free to it, too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()


def free_memory() -> int:
    """Bytes that this machine can give to its processes, and no more than this container may still take.

    Where the system does not say what is available (macOS), all the memory that there is.
    """
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(_MEMINFO):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            available = int(value.split()[0]) * 1024
    for line in _lines(_OWN_CGROUP):
        _, controllers, path = line.split(":", 2)
        group = _CGROUPS / path.lstrip("/")
        # In a container the path may be that of the host, and the files those of the root.
        for folder in (group, *group.parents) if not controllers else ():
            try:
                limit, used = int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
                statistics = dict(line.split() for line in _lines(folder / "memory.stat"))
            except (OSError, ValueError):  # no limit ("max")
                continue
            # Pages of files that were read are given back when they are needed.
            cached = sum(int(statistics.get(name, 0)) for name in ("inactive_file", "active_file"))
            available = min(available, limit - used + cached)
    return available


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
