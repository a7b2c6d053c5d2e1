"""Memory of a training step that stays from step to step.

Matrices that are made and dropped in every step leave holes between the smaller ones, which the next step's do not fit:
the process grows by as much again. New memory is also slow: the system clears every page of it.

Legend: B pairs, N columns.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch

# Smaller ones are left to the allocator.
_LARGE_BYTES = 1 << 20
# Where matrices begin inside others.
_ALIGNED = 64


def lasting(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for something that stays for the whole training, filled with zeros where it is large and on the CPU, else
    with anything.

    There it is apart from what comes and goes, which would otherwise be left with holes between such blocks.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the system has none
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Rooms:
    """Matrices by name.

    Args:
        rows: room is made for so many at least: batches differ a little in size.
    """

    def __init__(self, rows: int = 0) -> None:
        self._rows = rows
        self._rooms: dict[str, torch.Tensor] = {}
        self._places: dict[str, slice] = {}
        self._taken = 0
        # What was given last by each name: most batches are of one size, and every view takes time.
        self._given: dict[str, torch.Tensor] = {}

    def of(self, name: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(B, N), contiguous; what it holds is undefined. The memory that this name gave before is used again."""
        given = self._given.get(name)
        if given is not None and _fits(given, rows, columns, dtype, device):
            return given
        room = self._rooms.get(name)
        size = rows * columns
        if room is None or room.numel() < size or room.dtype != dtype or room.device != device:
            # Nothing is held of the old one, nor of what is inside it, when there is a new one.
            self._given.clear()
            self._rooms.pop(name, None)
            room = self._rooms[name] = lasting((max(rows, self._rows) * columns,), dtype, device)
        self._given[name] = room[:size].view(rows, columns)
        return self._given[name]

    def inside(self, outer: str, name: str, x_BN: torch.Tensor) -> torch.Tensor:
        """As `of`, of the size, dtype and device of another matrix; in a part of the memory of `outer`, which nobody
        needs until it is asked for again, or where it is too small for that in memory of its own."""
        rows, columns = x_BN.shape
        given = self._given.get(name)
        if given is not None and _fits(given, rows, columns, x_BN.dtype, x_BN.device):
            return given
        if name not in self._places or self._places[name].stop < self._places[name].start + x_BN.nbytes:
            # One that has grown moves behind all others.
            size = -(-max(rows, self._rows) * columns * x_BN.dtype.itemsize // _ALIGNED) * _ALIGNED
            self._places[name] = slice(self._taken, self._taken + size)
            self._taken += size
        room, start = self._rooms.get(outer), self._places[name].start
        stop = start + x_BN.nbytes
        if room is None or room.nbytes < stop or room.device != x_BN.device:
            return self.of(name, rows, columns, x_BN.dtype, x_BN.device)
        self._given[name] = room.view(torch.uint8)[start:stop].view(x_BN.dtype).view(rows, columns)
        return self._given[name]


def _fits(x_BN: torch.Tensor, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> bool:
    return x_BN.shape == (rows, columns) and x_BN.dtype == dtype and x_BN.device == device
