"""How much memory is free on this machine and its devices."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_FILES = ("inactive_file", "active_file")
_MEMINFO, _CGROUPS, _OWN_CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory() -> int:
    """Bytes that this machine can give to its processes, and no more than this container may still take.

    Where the system does not say what is available (macOS), all the memory that there is.
    """
    available = _available()
    for limit in _container_limits():
        available = min(available, limit)
    return available


def free_on(device: torch.device) -> int:
    """Bytes free on a device: of this machine if it is the CPU."""
    if device.type == "cuda":
        # What torch keeps for this process without using it is free to it, too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()


def _available() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_limits() -> list[int]:
    """What each limit on this process's control groups leaves."""
    if not _OWN_CGROUP.exists():
        return []
    found = []
    for line in _OWN_CGROUP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        group = _CGROUPS / path.lstrip("/")
        # In a container the path may be that of the host, and the files those of the root.
        for folder in (group, *group.parents) if not controllers else ():
            try:
                limit, used = int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit ("max")
                continue
            # Pages of files that were read are given back when they are needed.
            found.append(limit - used + sum(int(statistics.get(name, 0)) for name in _FILES))
    return found
