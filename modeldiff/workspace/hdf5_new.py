"""New HDF5 files, on disks that may become full.

HDF5 does not survive a write that fails: it tries again when its objects are dropped, and crashes the process. So it
never learns of one. The bytes go to the disk through Python, and after a failure they go nowhere.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import h5py


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
