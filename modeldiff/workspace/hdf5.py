"""Opening HDF5 files, one function for all, and making new ones, on disks that may become full.

HDF5 does not survive a write that fails: it tries again when its objects are dropped, and crashes the process. So it
never learns of one. The bytes go to the disk through Python, and after a failure they go nowhere.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import h5py

from modeldiff.errors import DamagedError


def open_hdf5(path: Path) -> h5py.File:
    """Open a file. No lock is taken, which some file systems lack: files are written under a temporary name, and do not
    change afterwards. Raises OSError: it cannot be opened, or is no HDF5; DamagedError: a part of it is elsewhere,
    which whoever made it chose and the reader may not want to open."""
    file = h5py.File(path, "r", locking=False)
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


class NewFile(h5py.File):
    """An HDF5 file to be written once, in a `with` block. At its end, or at `check`, a write that failed is raised as
    OSError, which names the file; then the file is gone, and the room that it took is free."""

    def __init__(self, path: Path) -> None:
        self._disk = _Disk(path)
        super().__init__(self._disk, "w")

    def check(self) -> None:
        """Raise OSError if a write has failed already: the rest is not worth computing."""
        if self._disk.failure is not None:
            raise self._disk.failure

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._disk.close()
        if raised[0] is not None or self._disk.failure is not None:
            self._disk.path.unlink(missing_ok=True)
        self.check()


class _Disk(io.RawIOBase):
    """The file of `path`, emptied, as HDF5 sees it: one whose writes never fail; `failure`: the first one that did."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.failure: OSError | None = None
        self._file = path.open("wb+", buffering=0)

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, into: Any) -> int:
        return self._file.readinto(into)

    def write(self, content: Any) -> int:
        done = 0
        while self.failure is None and done < len(content):
            try:
                done += self._file.write(content[done:])
            except OSError as error:
                self.failure = OSError(error.errno, error.strerror, str(self.path))
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.failure = self.failure or OSError(error.errno, error.strerror, str(self.path))
            return size or 0

    def close(self) -> None:
        self._file.close()
        super().close()
