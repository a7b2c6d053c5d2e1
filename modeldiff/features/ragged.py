"""Lists of different lengths as flat arrays with offsets: one for each example, cheap to store, join and reorder.

Legend: E lists, V values of all lists together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Values that are moved at once.
_PART = 1 << 17

Column = NDArray[np.generic]


@dataclass(frozen=True)
class Ragged:
    """E lists of records."""

    offsets: NDArray[np.int64]
    """(E + 1,): list i is offsets[i] to offsets[i + 1]."""
    columns: dict[str, Column]
    """The records' fields, each (V,)."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, lists: Sequence[dict[str, Column]], dtypes: dict[str, type[np.generic]]) -> Ragged:
        """From one dict of columns per list."""
        lengths = [len(next(iter(one.values()))) for one in lists]
        columns = {
            name: np.concatenate([one[name] for one in lists]).astype(dtype) if lists else np.zeros(0, dtype)
            for name, dtype in dtypes.items()
        }
        return cls(np.cumsum([0, *lengths], dtype=np.int64), columns)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """All lists of the parts, in order. There is at least one part."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        return cls(np.concatenate([[0], np.cumsum(lengths)]), columns)

    def row(self, index: int) -> dict[str, Column]:
        """The columns of one list."""
        return {name: column[self.offsets[index] : self.offsets[index + 1]] for name, column in self.columns.items()}

    def take(self, order: NDArray[np.int64]) -> Ragged:
        """The lists numbered `order`, in that order."""
        starts, stops = self.offsets[:-1][order], self.offsets[1:][order]
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        taken = {name: np.empty(offsets[-1], column.dtype) for name, column in self.columns.items()}
        # A part at a time: the numbers of all values would take more memory than the values.
        parts = np.searchsorted(offsets, np.arange(0, offsets[-1], _PART), side="right") - 1
        for low, high in itertools.pairwise([*np.unique(parts), len(order)]):
            _, index = ranges(starts[low:high], stops[low:high])
            for name, column in self.columns.items():
                taken[name][offsets[low] : offsets[high]] = column[index]
        return Ragged(offsets, taken)


def ranges(start_E: NDArray[np.int64], stop_E: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(index of the range (V,), number (V,)) of all numbers of the ranges start to stop, one range after the other."""
    first_E = np.cumsum(stop_E - start_E) - (stop_E - start_E)
    total = int(first_E[-1] + stop_E[-1] - start_E[-1]) if len(start_E) else 0
    # A range's index is how many ranges began before: several times as fast as repeating each.
    index_V = np.cumsum(np.bincount(first_E, minlength=total + 1)[:total]) - 1
    return index_V, np.arange(total) + (start_E - first_E)[index_V]
