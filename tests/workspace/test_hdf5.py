"""A received HDF5 file opens no other file."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from modeldiff.errors import DamagedError
from modeldiff.workspace.hdf5 import NewFile, open_hdf5
from modeldiff.workspace.plan import read_plan


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), np.uint8)
    layout[:] = h5py.VirtualSource("secret", "x", (4,))
    file.create_virtual_dataset("group/x", layout)


WAYS: dict[str, Callable[[h5py.File], object]] = {
    "external link": lambda file: file.__setitem__("group/x", h5py.ExternalLink("secret", "/x")),
    "soft link": lambda file: file.__setitem__("group/x", h5py.SoftLink("/elsewhere")),
    "external storage": lambda file: file.create_dataset("group/x", (4,), np.uint8, external=[("secret", 0, 4)]),
    "virtual": virtual,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_leads_to_another_one_is_refused(tmp_path: Path, way: str) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    path = tmp_path / "received.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.zeros(3)
        WAYS[way](file)
    for read in (open_hdf5, read_plan):
        with pytest.raises(DamagedError, match=r"received\.h5: 'group/x' is a link or is stored outside of the file"):
            read(path)


def test_no_lock_is_asked_for(tmp_path: Path) -> None:
    """Some file systems have none."""
    path = tmp_path / "plain.h5"
    with NewFile(path) as file:
        file["group/x"] = np.arange(3)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with open_hdf5(path) as file:
            assert file["group/x"][()].tolist() == [0, 1, 2]
