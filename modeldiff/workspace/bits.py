"""Activations in HDF5: tensors into datasets and back, bit for bit.

A dataset of rows (N, D) has the attribute `encoding`: float16 and float32 are stored as such. numpy and h5py have no
bfloat16: it is stored as uint16, its bits, the upper half of the float32 of the same value; in numpy
`(bits.astype(numpy.uint32) << 16).view(numpy.float32)`. The view must be *unsigned* on both ends: an int16 view written
into a uint16 dataset is converted by value, and HDF5 clamps every negative number to zero without an error.

HDF5 reads one chunk after the other, and waits for the disk each time. Chunks without filters are plain bytes at known
offsets in the file (`RowLayout`), so many can be read at the same time, straight into their destination (`read_all`).

Rows are read in any order, and files are too large to read them once more for a check: they have a digest for each
piece of some hundred kilobytes, and a piece is compared with it when the process reads it for the first time. A piece
is as many consecutive rows as fit into 512 KiB, rounded down to a power of two, and at most those of a chunk; the last
one has what is left.

Legend: N rows, D width, C chunks, P pieces.
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
from blake3 import blake3
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
# Blocks of rows begin and end with a piece, unless one side is much wider than the other.
_PIECE_BYTES = 512 << 10
_DIGEST_BYTES = 32
_READERS = 4
# Less than this is read in the caller's thread.
_WORTH_THREADS = 4 << 20


def bytes_per_value(encoding: str) -> int:
    return ENCODINGS[encoding][0].itemsize


def chunk_rows(width: int, encoding: str) -> int:
    """Rows of one HDF5 chunk, a power of two between 64 and 4096, of about 2 MiB."""
    return min(_MAX_CHUNK_ROWS, max(64, _power_of_two(_CHUNK_BYTES, width, encoding)))


def _power_of_two(size: int, width: int, encoding: str) -> int:
    rows = size // (width * bytes_per_value(encoding))
    return 1 << max(0, rows.bit_length() - 1)


class RowWriter:
    """Fills a new dataset (rows, width) of an open file from the first row to the last; chunked, no filter."""

    def __init__(self, file: h5py.File, name: str, rows: int, width: int, encoding: str) -> None:
        self._dtype, stored = ENCODINGS[encoding]
        chunks = (min(chunk_rows(width, encoding), max(1, rows)), width)
        self._dataset = file.create_dataset(name, shape=(rows, width), dtype=stored, chunks=chunks)
        self._dataset.attrs[ENCODING_ATTRIBUTE] = encoding
        self._piece_rows = _piece_rows(self._dataset)
        self._done, self._piece, self._digests = 0, blake3(), list[bytes]()

    def append(self, x_ND: torch.Tensor) -> None:
        """Write the next rows, converted to the dataset's encoding (round to nearest even)."""
        bits_ND = bits_of(x_ND.detach().to(device="cpu", dtype=self._dtype).contiguous())
        self._dataset[self._done : self._done + len(bits_ND)] = bits_ND
        while len(bits_ND):
            part_ND = bits_ND[: self._piece_rows - self._done % self._piece_rows]
            self._piece.update(part_ND.data.cast("B"))
            self._done += len(part_ND)
            if self._done % self._piece_rows == 0 or self._done == len(self._dataset):
                self._digests.append(self._piece.digest())
                self._piece = blake3()
            bits_ND = bits_ND[len(part_ND) :]

    @property
    def digests(self) -> NDArray[np.uint8]:
        """(P, 32) BLAKE3 of each piece that is written."""
        return np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, _DIGEST_BYTES)


def _piece_rows(dataset: h5py.Dataset) -> int:
    """Rows of one piece: a power of two, and a part of a chunk, or a whole one."""
    return min(dataset.chunks[0], _power_of_two(_PIECE_BYTES, dataset.shape[1], encoding_of(dataset)))


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


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a dataset that a `RowWriter` filled are in its file."""

    path: Path
    rows: int
    row_bytes: int
    chunk_rows: int
    offset_C: NDArray[np.int64]
    """Where each chunk begins."""
    piece_rows: int
    digest_P: NDArray[np.uint8]
    """(P, 32)."""
    sound_P: NDArray[np.bool_]
    """Which pieces this process has compared with their digest."""

    @classmethod
    def of(cls, dataset: h5py.Dataset, digest_P: NDArray[np.uint8]) -> RowLayout:
        """Look it up. Raises DamagedError: the rows are not plain bytes in the file, some were never written, or there
        is not one digest for each piece."""
        rows, width = dataset.shape
        if dataset.chunks is None or dataset.chunks[1] != width or dataset.id.get_create_plist().get_nfilters():
            raise DamagedError(f"{dataset.file.filename}: expected chunks of whole rows without filters")
        chunk_rows, piece_rows = dataset.chunks[0], _piece_rows(dataset)
        chunks = [dataset.id.get_chunk_info(number) for number in range(dataset.id.get_num_chunks())]
        chunks.sort(key=lambda chunk: chunk.chunk_offset[0])
        if len(chunks) * chunk_rows < rows:
            raise DamagedError(f"{dataset.file.filename}: some of its {rows:,} rows were never written")
        shape = (-(-rows // piece_rows), _DIGEST_BYTES)
        if digest_P.shape != shape or (len(chunks) > 1 and chunk_rows % piece_rows):
            raise DamagedError(f"{dataset.file.filename}: expected digests {shape}, found {digest_P.shape}")
        offset_C, sound_P = np.array([chunk.byte_offset for chunk in chunks], np.int64), np.zeros(shape[0], np.bool_)
        row_bytes = width * dataset.dtype.itemsize
        return cls(Path(dataset.file.filename), rows, row_bytes, chunk_rows, offset_C, piece_rows, digest_P, sound_P)

    def reads(self, start: int, into: memoryview) -> Iterator[Read]:
        """What fills `into` with the rows from `start` on, one read for each chunk."""
        done, count = 0, len(into) // self.row_bytes
        while done < count:
            stop = min(count, done + self.chunk_rows - (start + done) % self.chunk_rows)
            yield Read(self, start + done, into[done * self.row_bytes : stop * self.row_bytes])
            done = stop

    def fill(self, descriptor: int, row: int, into: memoryview) -> None:
        """Read the rows from `row` on, all of one chunk; with them the rest of pieces that were not compared yet."""
        stop = row + len(into) // self.row_bytes
        pieces = slice(row // self.piece_rows, -(-stop // self.piece_rows))
        if self.sound_P[pieces].all():
            self._read(descriptor, row, into)
            return
        low, high = pieces.start * self.piece_rows, min(self.rows, pieces.stop * self.piece_rows)
        whole = into if (low, high) == (row, stop) else memoryview(bytearray((high - low) * self.row_bytes))
        self._read(descriptor, low, whole)
        size = self.piece_rows * self.row_bytes
        for number, digest in enumerate(self.digest_P[pieces]):
            if blake3(whole[number * size : (number + 1) * size]).digest() != digest.tobytes():
                raise OSError(0, "its content is not what was written: digest differs", str(self.path))
        self.sound_P[pieces] = True
        if whole is not into:
            into[:] = whole[(row - low) * self.row_bytes : (stop - low) * self.row_bytes]

    def _read(self, descriptor: int, row: int, into: memoryview) -> None:
        chunk, skipped = divmod(row, self.chunk_rows)
        offset, done = int(self.offset_C[chunk]) + skipped * self.row_bytes, 0
        while done < len(into):
            try:
                got = os.preadv(descriptor, [into[done:]], offset + done)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            if not got:
                raise OSError(0, f"ends before byte {offset + len(into):,}", str(self.path))
            done += got


class Read(NamedTuple):
    """Rows of a file, from `row` on, all of one chunk, that fill `into`."""

    layout: RowLayout
    row: int
    into: memoryview


def read_all(reads: Sequence[Read]) -> None:
    """Fill the memory of all reads, several at a time. Raises OSError: a file, which is named, cannot be read, is
    shorter, or holds something else than was written."""
    with ExitStack() as stack:
        paths = dict.fromkeys(read.layout.path for read in reads)
        files = {path: stack.enter_context(path.open("rb", buffering=0)).fileno() for path in paths}

        def fill(read: Read) -> None:
            read.layout.fill(files[read.layout.path], read.row, read.into)

        if sum(len(read.into) for read in reads) < _WORTH_THREADS:
            for read in reads:
                fill(read)
        else:
            pool = stack.enter_context(ThreadPoolExecutor(_READERS, "read"))
            for done in [pool.submit(fill, read) for read in reads]:
                done.result()
