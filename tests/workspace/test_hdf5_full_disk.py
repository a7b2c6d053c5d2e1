"""HDF5 files on a disk that fills: an OSError that names the file, wherever the write that fails is."""

import errno
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from modeldiff.workspace.hdf5 import NewFile
from tests.full_disk import files_up_to

ROWS = np.arange(60_000, dtype=np.float32).reshape(3_000, 20)


def write(path: Path) -> None:
    """Chunks in HDF5's cache, small arrays in its buffers, groups in its metadata."""
    with NewFile(path) as file:
        rows = file.create_dataset("rows", shape=ROWS.shape, dtype="f4", chunks=(256, 20))
        rows.attrs["encoding"] = "float32"
        for start in range(0, len(ROWS), 100):
            rows[start : start + 100] = ROWS[start : start + 100]
        for number in range(6):
            file[f"group{number % 2}/small{number}"] = np.arange(40)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert np.array_equal(file["rows"][()], ROWS)
        assert file["group1/small3"][()].tolist() == list(range(40))


def test_a_write_that_fails_is_named_wherever_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write(path)
    whole = path.stat().st_size
    for size in [*range(0, 4_000, 331), *range(4_000, whole, whole // 20), whole - 1]:
        with files_up_to(size), pytest.raises(OSError, match="File too large") as caught:
            write(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert not path.exists()
    with files_up_to(whole):
        write(path)


def test_a_failure_can_be_asked_for_before_the_end(tmp_path: Path) -> None:
    with suppress(OSError), NewFile(tmp_path / "x.h5") as file:
        with files_up_to(100):
            file["rows"] = ROWS
        with pytest.raises(OSError, match="File too large"):
            file.check()
