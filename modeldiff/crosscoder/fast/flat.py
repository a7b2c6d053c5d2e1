"""Flat indices into a matrix: those of the true ones of a mask, and their rows and columns.

On the CPU by numpy, which is several times as fast there as torch.

Legend: K entries.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_INT32_MAX = np.iinfo(np.int32).max


def rows_and_columns(flat_K: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of flat indices, int64, into a matrix of so many columns; int32 on the CPU, where they are much of what a batch
    with many kept entries takes, elsewhere int64."""
    if flat_K.device.type != "cpu":
        rows_K = flat_K // columns
        return rows_K, flat_K - rows_K * columns
    flat = _short(flat_K)
    rows = flat // columns
    return _int32(rows), _int32(_less(flat, rows * columns))


def columns_of(flat_K: torch.Tensor, columns: int) -> torch.Tensor:
    """The second of `rows_and_columns`."""
    if flat_K.device.type != "cpu":
        return flat_K % columns
    flat = _short(flat_K)
    rows = flat // columns  # numpy divides several times as fast as it finds remainders
    return _int32(_less(flat, np.multiply(rows, columns, out=rows)))


def _short(flat_K: torch.Tensor) -> NDArray[np.signedinteger]:
    flat = flat_K.numpy()
    return flat.astype(np.int32) if flat.size and flat.max() <= _INT32_MAX else flat


def _less(flat: NDArray[np.signedinteger], multiples: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    """The difference, written over the multiples."""
    return np.subtract(flat, multiples, out=multiples)


def _int32(numbers: NDArray[np.signedinteger]) -> torch.Tensor:
    return torch.from_numpy(numbers.astype(np.int32, copy=False))


def places_of(mask: torch.Tensor) -> torch.Tensor:
    """Flat indices, int64, ascending, of the true ones."""
    if mask.device.type != "cpu":
        return mask.reshape(-1).nonzero()[:, 0]
    return torch.from_numpy(flatnonzero(mask.numpy()))


def flatnonzero(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """numpy's; where few are true, in two steps.

    Below a tenth numpy looks for each true value anew, at a branch that the processor cannot predict. Looking first
    for the words of eight that hold one is twice as fast.
    """
    if mask.size % 8 or not mask.flags.c_contiguous or 10 * np.count_nonzero(mask) >= mask.size:
        return np.flatnonzero(mask)
    words = mask.reshape(-1).view(np.uint64)
    places = np.flatnonzero(words != 0)
    within = np.flatnonzero(words[places].view(np.bool_))
    return (places << 3)[within >> 3] + (within & 7)
