"""Activations in HDF5: the one pair of functions that turns tensors into datasets and back.

numpy and h5py have no bfloat16. It is stored as its bits in uint16 with the attribute `encoding = "bfloat16"`. The view
must be *unsigned* on both ends: an int16 view written into a uint16 dataset is converted by value, and HDF5 clamps
every negative number to zero without an error.

Legend: N rows, D width.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import torch

from modeldiff.errors import DamagedError

ENCODINGS: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "bfloat16": (torch.bfloat16, np.uint16),
    "float16": (torch.float16, np.float16),
    "float32": (torch.float32, np.float32),
}
ENCODING_ATTRIBUTE = "encoding"
# Whole-chunk reads of 1 to 2 MiB run at the speed of the disk; smaller chunks cost a lookup each.
_CHUNK_BYTES = 2 << 20
_MAX_CHUNK_ROWS = 4096


def bytes_per_value(encoding: str) -> int:
    """2 or 4."""
    return ENCODINGS[encoding][0].itemsize


def chunk_rows(width: int, encoding: str) -> int:
    """Rows of one HDF5 chunk, a power of two between 64 and 4096, of about 2 MiB."""
    rows = _CHUNK_BYTES // (width * bytes_per_value(encoding))
    return min(_MAX_CHUNK_ROWS, max(64, 1 << max(0, rows.bit_length() - 1)))


def create_dataset(file: h5py.File, name: str, rows: int, width: int, encoding: str) -> h5py.Dataset:
    """An empty (rows, width) dataset that `write_rows` fills; chunked, no filter."""
    chunks = (min(chunk_rows(width, encoding), max(1, rows)), width)
    dataset = file.create_dataset(name, shape=(rows, width), dtype=ENCODINGS[encoding][1], chunks=chunks)
    dataset.attrs[ENCODING_ATTRIBUTE] = encoding
    return dataset


def write_rows(dataset: h5py.Dataset, start: int, x_ND: torch.Tensor) -> None:
    """Write rows from `start` on, converted to the dataset's encoding (round to nearest even)."""
    dtype, _ = ENCODINGS[encoding_of(dataset)]
    dataset[start : start + len(x_ND)] = bits_of(x_ND.detach().to(device="cpu", dtype=dtype).contiguous())


def empty_rows(rows: int, width: int, encoding: str) -> torch.Tensor:
    """Memory (N, D) in the dtype of an encoding, for `read_into`; what it holds is undefined."""
    # numpy asks for huge pages, torch does not: filling new memory takes several times as long without them.
    return _as_tensor(np.empty((rows, width), ENCODINGS[encoding][1]), ENCODINGS[encoding][0])


def read_into(dataset: h5py.Dataset, start: int, x_ND: torch.Tensor) -> None:
    """Read the N rows from `start` on into `x_ND`, bit for bit.

    Args:
        x_ND: contiguous, on the CPU, of the stored dtype.
    """
    if len(x_ND):
        dataset.read_direct(bits_of(x_ND), np.s_[start : start + len(x_ND)])


def bits_of(x_ND: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor on the CPU as it is in a file."""
    return (x_ND.view(torch.uint16) if x_ND.dtype == torch.bfloat16 else x_ND).numpy()


def read_rows(dataset: h5py.Dataset, start: int, stop: int) -> torch.Tensor:
    """Rows start..stop as a tensor (stop - start, D) of the stored dtype, bit for bit."""
    x_ND = empty_rows(max(0, stop - start), dataset.shape[1], encoding_of(dataset))
    read_into(dataset, start, x_ND)
    return x_ND


def _as_tensor(bits: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    x_ND = torch.from_numpy(bits)
    return x_ND.view(torch.bfloat16) if dtype == torch.bfloat16 else x_ND


def encoding_of(dataset: h5py.Dataset) -> str:
    """The dataset's encoding, checked against its HDF5 type."""
    encoding: Any = dataset.attrs.get(ENCODING_ATTRIBUTE)
    if encoding not in ENCODINGS or dataset.dtype != ENCODINGS[encoding][1]:
        raise DamagedError(
            f"{dataset.file.filename}: dataset {dataset.name} has encoding {encoding!r} and type {dataset.dtype}, "
            f"expected one of {', '.join(ENCODINGS)} with its own type"
        )
    return str(encoding)
