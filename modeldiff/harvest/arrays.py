"""Activations captured elsewhere: one (N, D) array in a .npy, .safetensors or HDF5 file, read in blocks.

Legend: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace.bits import ENCODING_ATTRIBUTE, read_rows

_HDF5_SUFFIXES = (".h5", ".hdf5")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class ArrayFile:
    """Where an array is.

    Attributes:
        path: the file; key: tensor or data set in it, None for .npy; rows, width: its shape.
    """

    path: Path
    key: str | None
    rows: int
    width: int

    @contextmanager
    def open(self) -> Iterator[Callable[[int, int], torch.Tensor]]:
        """Give a function (start, stop) -> rows as a CPU tensor in the file's dtype."""
        with _opened(self.path, self.key) as (_, read):
            yield read


def find_array(entry: str, option: str) -> ArrayFile:
    """The array that `FILE` or `FILE:KEY` means.

    Raises:
        InputError: no such file or key, not two-dimensional, empty, or not of a floating type.
        DamagedError: the file cannot be read.
    """
    path, key = _split(entry)
    if not path.is_file():
        raise InputError(f"{option}: there is no file {path}")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if key:
            raise InputError(f"{option}: {path} holds one array: leave out ':{key}'")
    elif suffix == ".safetensors" or suffix in _HDF5_SUFFIXES:
        key = _choose_key(path, key, option)
    else:
        raise InputError(f"{option}: {path} ends in '{path.suffix}': expected .npy, .safetensors or .h5")
    with _opened(path, key) as (shape, read):
        place = f"{path}:{key}" if key else str(path)
        if len(shape) != 2:
            raise InputError(f"{option}: {place} has shape {tuple(shape)}: expected (pairs, width)")
        if 0 in shape:
            raise InputError(f"{option}: {place} is empty: its shape is {tuple(shape)}")
        dtype = read(0, 1).dtype
        if dtype not in _DTYPES:
            raise InputError(f"{option}: {place} has type {dtype}: expected bfloat16, float16, float32 or float64")
        return ArrayFile(path, key, int(shape[0]), int(shape[1]))


def _split(entry: str) -> tuple[Path, str | None]:
    if Path(entry).exists():
        return Path(entry), None
    head, colon, key = entry.rpartition(":")
    # A colon before a separator belongs to the path.
    return (Path(head), key) if colon and head and Path(head).suffix else (Path(entry), None)


def _choose_key(path: Path, key: str | None, option: str) -> str:
    keys = _keys(path)
    if key is not None:
        if key.strip("/") not in keys:
            raise InputError(f"{option}: {path} has no '{key}': it holds {', '.join(keys) or 'nothing'}")
        return key.strip("/")
    if len(keys) != 1:
        found = ", ".join(keys) or "nothing"
        raise InputError(f"{option}: which array of {path}? It holds {found}; choose one as {path}:KEY")
    return keys[0]


def _keys(path: Path) -> list[str]:
    with _readable(path):
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return sorted(file.keys())
        with h5py.File(path, "r") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            return sorted(names)


@contextmanager
def _opened(path: Path, key: str | None) -> Iterator[tuple[tuple[int, ...], Callable[[int, int], torch.Tensor]]]:
    suffix = path.suffix.lower()
    with _readable(path):
        if suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            yield array.shape, lambda start, stop: _tensor(array[start:stop])
        elif suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                rows: Any = file.get_slice(key)
                yield tuple(rows.get_shape()), lambda start, stop: rows[start:stop]
        else:
            with h5py.File(path, "r") as file:
                dataset = file[key]
                # modeldiff's own encoding is understood; other files hold plain numbers.
                own = ENCODING_ATTRIBUTE in dataset.attrs
                yield (
                    dataset.shape,
                    lambda start, stop: read_rows(dataset, start, stop) if own else _tensor(dataset[start:stop]),
                )


def _tensor(array: Any) -> torch.Tensor:
    """A copy in the machine's byte order; kinds that torch lacks come out as one that is no float."""
    array = np.array(array)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        return torch.zeros(0, dtype=torch.bool) if array.dtype.kind not in "iu" else torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedError(f"{path}: cannot be read ({reason})") from None
