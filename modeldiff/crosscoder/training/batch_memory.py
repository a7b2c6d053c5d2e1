"""Memory for batches of pairs that is used again and again, but never while somebody holds what was given out of it.

New memory is not free: the system clears every page of it when it is first touched, which takes longer than filling it.

Legend: S slots, B rows of a batch, D width of a side.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.bits import bits_of

# Batches that may be held while all others are in use: the one that is trained on, and the one before it.
MOST_HELD = 2


class BatchMemory:
    """Slots, each of which holds one batch of both sides.

    Args:
        slots: that are in use at once, those that are given out not counted.

    Attributes:
        x: by side, the memory (rows, D) of all slots, one after the other, and one row more for what nobody needs.
    """

    def __init__(self, store: ActivationStore, batch: int, slots: int) -> None:
        self._batch = batch
        slots += MOST_HELD
        self.x = {side: store.empty_rows(side, slots * batch + 1) for side in SIDES}
        self._free = list(range(slots))
        self._held: dict[int, list[weakref.ref[NDArray[np.generic]]]] = {}

    @property
    def nowhere(self) -> int:
        """The row for what nobody needs."""
        return len(self.x["a"]) - 1

    def take(self) -> int:
        """A slot that nobody uses; it is in use from now on."""
        self._collect()
        return self._free.pop()

    def first_row(self, slot: int) -> int:
        """Row of `x` where a slot begins."""
        return slot * self._batch

    def give_out(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_a (B, Da), x_b (B, Db)) of a slot, which is free again when nobody holds them, nor any view of them.

        When many are held already these are copies, so that slots do not run out.
        """
        rows = slice(self.first_row(slot), self.first_row(slot) + self._batch)
        self._collect()
        if len(self._held) >= MOST_HELD:
            self._free.append(slot)
            return self.x["a"][rows].clone(), self.x["b"][rows].clone()
        lent = {side: bits_of(x_ND)[rows] for side, x_ND in self.x.items()}
        # A tensor holds the array that it was made of as long as anything uses its memory.
        self._held[slot] = [weakref.ref(bits_BD) for bits_BD in lent.values()]
        x_a, x_b = (torch.from_numpy(lent[side]).view(self.x[side].dtype) for side in SIDES)
        return x_a, x_b

    def _collect(self) -> None:
        for slot in [slot for slot, refs in self._held.items() if all(ref() is None for ref in refs)]:
            del self._held[slot]
            self._free.append(slot)
