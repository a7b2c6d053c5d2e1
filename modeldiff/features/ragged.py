"""Lists of different lengths as flat arrays with offsets: one for each example, cheap to store, join and reorder.

Legend: E lists, V values of all lists together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        lengths = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][order] - offsets[:-1], lengths)
        return Ragged(offsets, {name: column[index] for name, column in self.columns.items()})
