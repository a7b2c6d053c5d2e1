"""Memory of a training step that stays from step to step.

Matrices that are made and dropped in every step leave holes between the smaller ones, which the next step's do not fit:
the process grows by as much again. New memory is also slow: the system clears every page of it.

Legend: B pairs, N columns.
"""

from __future__ import annotations

import torch


class Rooms:
    """Matrices by name.

    Args:
        rows: room is made for so many at least: batches differ a little in size.
    """

    def __init__(self, rows: int = 0) -> None:
        self._rows = rows
        self._rooms: dict[str, torch.Tensor] = {}

    def of(self, name: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(B, N), contiguous; what it holds is undefined. The memory that this name gave before is used again."""
        room = self._rooms.get(name)
        size = rows * columns
        if room is None or room.numel() < size or room.dtype != dtype or room.device != device:
            self._rooms.pop(name, None)  # before there is a new one
            room = self._rooms[name] = torch.empty(max(rows, self._rows) * columns, dtype=dtype, device=device)
        return room[:size].view(rows, columns)

    def like(self, name: str, x_BN: torch.Tensor) -> torch.Tensor:
        """As `of`, of the size, dtype and device of another matrix."""
        return self.of(name, x_BN.shape[0], x_BN.shape[1], x_BN.dtype, x_BN.device)
