"""The edge of the command line: streams that are closed or narrow, and a few words for whatever goes wrong."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from modeldiff.errors import first_line

TRACEBACK_ENV = "MODELDIFF_TRACEBACK"
"""Set in the environment, the traceback of any error is printed, too: for developers."""
_CONTINUES = "the same command continues"
# What helps, by what the system says of a file.
_REMEDIES = {
    errno.ENOSPC: f"make room on that disk, and {_CONTINUES}",
    errno.EDQUOT: f"your quota there is used up: make room, and {_CONTINUES}",
    errno.EFBIG: f"no file may grow larger here: raise `ulimit -f`, and {_CONTINUES}",
    errno.EROFS: "that file system can only be read: choose another --workspace",
    errno.EACCES: "you have no permission for this: have it given, or choose another --workspace",
    errno.EPERM: "you have no permission for this: have it given, or choose another --workspace",
    errno.EMFILE: "too many files are open at once: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOLCK: "that file system has no locks: choose another --workspace",
    errno.EIO: "the disk, or the connection to it, fails: look into the system's log",
}
_NO_MEMORY = re.compile(
    r"can't allocate memory|out of memory|bad_alloc|cannot allocate memory|array is too big|maximum allowed dimension|"
    "storage size calculation overflowed",
    re.IGNORECASE,
)
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def open_streams() -> None:
    """Make stdin, stdout and stderr usable, whatever they were opened as."""
    # A file that is opened while one of these numbers is free would get it, and then what is printed into it.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # signs that the encoding lacks


def written(stream: TextIO) -> OSError | None:
    """Write what waits for a stream; why that cannot be done. Then it is dropped, and so is what comes later: Python
    would try again at its end, and complain."""
    try:
        stream.flush()
    except OSError as error:
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return OSError(error.errno, error.strerror, stream.name.strip("<>"))
    return None


def explained(error: Exception) -> str:
    """One line about an error that is not modeldiff's own: what happened, to which file, and what helps."""
    said = first_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(said):
        what = said if type(error).__name__ != said else "nothing more can be allocated"
        return f"not enough memory ({what}): ask for less at once, or on a larger machine the same command continues"
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        why = (error.strerror or said).splitlines()[0]
        return _of_system(error.errno, why, " -> ".join(names) or _file_at_hand(error))
    if in_rust := _SYSTEM_ERROR.search(said):
        number = int(in_rust[1])
        return _of_system(number, os.strerror(number), _file_at_hand(error))
    if isinstance(error, RecursionError):
        return "something is nested too deeply to be read (a file of JSON, or a template)"
    if type(error).__name__ == "SafetensorError":
        return f"a safetensors file cannot be read or written ({said})"
    if _raised_by(error) == "h5py":
        return f"an HDF5 file cannot be read or written ({said})"
    return _unknown(error)


def _of_system(number: int | None, why: str, file: str) -> str:
    return ": ".join(filter(None, [file, why, _REMEDIES.get(number or 0)]))


def _file_at_hand(error: Exception) -> str:
    """An error of opening a file names it, one of writing does not: then it is what the innermost function that holds
    one calls its path."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for name in ("self", "temporary", "path"):  # self: of pathlib's own functions
            if isinstance(found := frame.f_locals.get(name), Path):
                return str(found)
    return ""


def _raised_by(error: Exception) -> str:
    """The package that raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")).partition(".")[0] if frames else ""


def _unknown(error: Exception) -> str:
    """About what should not have happened; the traceback is kept in a file."""
    kept = ""
    with suppress(OSError), tempfile.NamedTemporaryFile(
        "w", prefix="modeldiff-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:  # fmt: skip
        file.write("".join(traceback.format_exception(error)))
        kept = f", with {file.name}, which says where"
    what = f"{type(error).__name__}: {first_line(error)}"
    return f"an error that modeldiff does not know ({what}): please report it to its maintainers{kept}"
