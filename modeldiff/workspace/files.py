"""Files that are whole or absent (temporary name, flush, fsync, rename), their digests, locks, and free space."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3

from modeldiff.errors import DamagedError, MachineError, first_line

TEMPORARY_SUFFIX = ".tmp"
# What file systems without locks answer (NFS without its lock daemon, some of clusters).
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# To ask for it is to set it: once, before there are threads.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_OPEN = 0o666 & ~_UMASK


def sha256_file(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(data: Any) -> str:
    """Hex SHA-256 of JSON data in one canonical spelling (sorted keys, no spaces)."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def blake3_file(path: Path) -> str:
    """Hex BLAKE3 of a file's content, read in blocks: pages of a mapped file would count as memory used."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]


def durable_blake3(path: Path) -> str:
    """Make a finished file's content durable; its BLAKE3, computed while the disk is busy."""
    with ThreadPoolExecutor(1, "digest") as beside:  # both release the interpreter's lock
        digest = beside.submit(blake3_file, path)
        fsync_file(path)
        return digest.result()


def temporary_path(path: Path) -> Path:
    """Where to write before `replace_into`; the process id keeps two processes apart."""
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def replace_into(temporary: Path, path: Path) -> None:
    """Make `temporary` durable and rename it to `path`: after a crash `path` is the old file or the new one, whole."""
    fsync_file(temporary)
    rename_into(temporary, path)


def rename_into(temporary: Path, path: Path) -> None:
    """Rename a file whose content is durable already, durably. Who may read it follows the umask: safetensors makes
    files that only their owner can read."""
    mode = temporary.stat().st_mode
    if mode | _OPEN != mode:
        temporary.chmod(mode | _OPEN)
    temporary.replace(path)
    fsync_folder(path.parent)


def fsync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    temporary = temporary_path(path)
    temporary.write_bytes(content)
    replace_into(temporary, path)


def json_bytes(data: Any) -> bytes:
    """JSON that people can read. NaN and infinity are refused: they are not JSON."""
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line. ASCII: no line separator of Unicode can break a line of the file."""
    return "".join(json.dumps(one, ensure_ascii=True, allow_nan=False) + "\n" for one in records).encode()


def write_json(path: Path, data: Any) -> None:
    write_bytes(path, json_bytes(data))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DamagedError: the file is missing, is not JSON (nor are NaN and infinity), or is not
    an object."""
    data = _parsed(_text(path), str(path))
    if not isinstance(data, dict):
        raise DamagedError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_json_lines(path: Path) -> list[Any]:
    """Read what `json_lines` wrote. Raises DamagedError: the file is missing, or a line is not JSON."""
    return [_parsed(line, f"{path}:{number}") for number, line in enumerate(_text(path).splitlines(), 1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError, MemoryError) as error:
        raise DamagedError(f"{where}: is not valid JSON ({first_line(error)})") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is made; whoever holds it may remove the file. Raises BlockingIOError: somebody
    has it, and we do not `wait`; MachineError: the file system has no locks."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise MachineError(
                f"the file system of {path.parent} has no file locks ({error.strerror}), which keep two processes "
                "apart: choose a --workspace on another one"
            ) from None
        if not os.fstat(file.fileno()).st_nlink:
            raise BlockingIOError(errno.EAGAIN, "whoever had the lock removed it", str(path))
        yield


def require_free(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise MachineError unless the file system that `folder` is or will be on has `needed_bytes` free."""
    free = free_bytes(folder)
    if needed_bytes > free:
        raise MachineError(
            f"{what} needs {human_bytes(needed_bytes)} on disk, {human_bytes(free)} are free in {folder}: "
            "ask for less, make room, or choose another place with --workspace"
        )


def free_bytes(folder: Path) -> int:
    """Bytes free on the file system of a folder, or of its nearest parent that exists."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def human_bytes(count: float) -> str:
    """A size for people: '1.6 TB', in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
