"""Activations in HDF5: tensors into datasets and back, bit for bit.

numpy and h5py have no bfloat16. It is stored as its bits in uint16 with the attribute `encoding = "bfloat16"`. The view
must be *unsigned* on both ends: an int16 view written into a uint16 dataset is converted by value, and HDF5 clamps
every negative number to zero without an error.

HDF5 reads one chunk after the other, and waits for the disk each time. Chunks without filters are plain bytes at known
offsets in the file (`RowLayout`), so many can be read at the same time, straight into their destination (`read_all`).

Legend: N rows, D width, C chunks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

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
_READERS = 4
# Less than this is read in the caller's thread.
_WORTH_THREADS = 4 << 20


def bytes_per_value(encoding: str) -> int:
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


def bits_of(x_ND: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor on the CPU as it is in a file."""
    return (x_ND.view(torch.uint16) if x_ND.dtype == torch.bfloat16 else x_ND).numpy()


def encoding_of(dataset: h5py.Dataset) -> str:
    """The dataset's encoding, checked against its HDF5 type."""
    encoding: Any = dataset.attrs.get(ENCODING_ATTRIBUTE)
    if encoding not in ENCODINGS or dataset.dtype != ENCODINGS[encoding][1]:
        raise DamagedError(
            f"{dataset.file.filename}: dataset {dataset.name} has encoding {encoding!r} and type {dataset.dtype}, "
            f"expected one of {', '.join(ENCODINGS)} with its own type"
        )
    return str(encoding)


class Read(NamedTuple):
    """Bytes of a file, from `offset` on, that fill `into`."""

    path: Path
    offset: int
    into: memoryview


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a dataset made by `create_dataset` are in its file."""

    path: Path
    row_bytes: int
    chunk_rows: int
    offset_C: NDArray[np.int64]
    """Where each chunk begins."""

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> RowLayout:
        """Look it up. Raises DamagedError: the rows are not plain bytes in the file, or some were never written."""
        rows, width = dataset.shape
        if dataset.chunks is None or dataset.chunks[1] != width or dataset.id.get_create_plist().get_nfilters():
            raise DamagedError(f"{dataset.file.filename}: expected chunks of whole rows without filters")
        chunk_rows = dataset.chunks[0]
        chunks = [dataset.id.get_chunk_info(number) for number in range(dataset.id.get_num_chunks())]
        chunks.sort(key=lambda chunk: chunk.chunk_offset[0])
        if len(chunks) * chunk_rows < rows:
            raise DamagedError(f"{dataset.file.filename}: some of its {rows:,} rows were never written")
        offset_C = np.array([chunk.byte_offset for chunk in chunks], np.int64)
        return cls(Path(dataset.file.filename), width * dataset.dtype.itemsize, chunk_rows, offset_C)

    def reads(self, start: int, into: memoryview) -> Iterator[Read]:
        """What fills `into` with the rows from `start` on, one read for each chunk."""
        done, count = 0, len(into) // self.row_bytes
        while done < count:
            chunk, skipped = divmod(start + done, self.chunk_rows)
            stop = min(count, done + self.chunk_rows - skipped)
            offset = int(self.offset_C[chunk]) + skipped * self.row_bytes
            yield Read(self.path, offset, into[done * self.row_bytes : stop * self.row_bytes])
            done = stop


def read_all(reads: Sequence[Read]) -> None:
    """Fill the memory of all reads, several at a time. Raises OSError: a file, which is named, cannot be read or is
    shorter."""
    with ExitStack() as stack:
        paths = dict.fromkeys(read.path for read in reads)
        files = {path: stack.enter_context(path.open("rb", buffering=0)).fileno() for path in paths}
        if sum(len(read.into) for read in reads) < _WORTH_THREADS:
            for read in reads:
                _fill(files[read.path], read)
        else:
            pool = stack.enter_context(ThreadPoolExecutor(_READERS, "read"))
            for done in [pool.submit(_fill, files[read.path], read) for read in reads]:
                done.result()


def _fill(descriptor: int, read: Read) -> None:
    done = 0
    while done < len(read.into):
        try:
            got = os.preadv(descriptor, [read.into[done:]], read.offset + done)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(read.path)) from None
        if not got:
            raise OSError(0, f"ends before byte {read.offset + len(read.into):,}", str(read.path))
        done += got
