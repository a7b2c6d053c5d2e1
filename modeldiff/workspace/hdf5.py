"""Opening HDF5 files: one function for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import h5py

from modeldiff.errors import DamagedError


def open_hdf5(path: Path, mode: Literal["r", "w"] = "r") -> h5py.File:
    """Open a file. No lock is taken, which some file systems lack: files are written under a temporary name, and do not
    change afterwards. Raises OSError: it cannot be opened, or is no HDF5; DamagedError: it is to be read, and a part of
    it is in another file, which whoever made it chose and the reader may not want to open."""
    file = h5py.File(path, mode, locking=False)
    outside: list[str] = []

    def link(name: bytes, info: Any) -> None:
        if info.type != h5py.h5l.TYPE_HARD:
            outside.append(name.decode(errors="replace"))

    def item(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
            outside.append(name)

    try:
        file.id.links.visit(link, info=True)
        file.visititems(item)
    except RuntimeError as error:
        outside.append(f"a link that cannot be read ({error})")
    if outside:
        file.close()
        raise DamagedError(
            f"{path}: '{outside[0]}' is a link or is stored outside of the file: it is not opened; copy what it means "
            "into one plain HDF5 file"
        )
    return file
