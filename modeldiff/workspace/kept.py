"""Files of unfinished work, each with its digest in a file of its own: one that was damaged before the run that
continues uses it is found, dropped and made again.

A run that is not interrupted reads nothing for this; one that continues reads each file once, when it asks for it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldiff.console import say
from modeldiff.errors import DamagedError
from modeldiff.records import from_json, to_json
from modeldiff.workspace.artifact import FileEntry
from modeldiff.workspace.files import (
    blake3_file,
    durable_blake3,
    json_bytes,
    read_json,
    rename_into,
    temporary_path,
    write_json,
)

SUFFIX = ".digest"


@dataclass(frozen=True)
class _Digests:
    files: list[FileEntry]
    """The newest last. Before it the one that it replaces: a kill may come between the two renames."""


def keep(temporary: Path, path: Path, digest: Path | None = None) -> None:
    """Take the finished file `temporary` as `path`, durably; after a crash `path` is this file or the one before it.
    `digest`: the file for its digest, by default beside it."""
    digest = digest or _beside(path)
    entry = FileEntry(temporary.stat().st_size, durable_blake3(temporary))
    digest.parent.mkdir(parents=True, exist_ok=True)
    write_json(digest, to_json(_Digests([*_known(digest)[-1:], entry])))
    rename_into(temporary, path)


def keep_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.write_bytes(content)
    keep(temporary, path)


def keep_json(path: Path, data: Any) -> None:
    keep_bytes(path, json_bytes(data))


def is_sound(path: Path, digest: Path | None = None) -> bool:
    """Whether `path` was kept, and is what it was then: it is read. One that is damaged is named, and then gone."""
    digest = digest or _beside(path)
    if not path.exists():
        return False
    known, found = _known(digest), found_entry(path)
    if found in known:
        if found != known[-1]:  # the kill came before the newest one was there
            write_json(digest, to_json(_Digests([found])))
        return True
    say(f"{path} is damaged: it is dropped, and what it held is made again")
    for one in (path, digest):
        one.unlink(missing_ok=True)
    return False


def found_entry(path: Path) -> FileEntry | None:
    """What a file is now, which is read for it; None: it is not there, or a part of the disk cannot be read."""
    with suppress(OSError):
        return FileEntry(path.stat().st_size, blake3_file(path))
    return None


def newest(digest: Path) -> FileEntry | None:
    """What a file was when it was last kept; None if it never was."""
    return next(reversed(_known(digest)), None)


def _known(digest: Path) -> list[FileEntry]:
    try:
        return from_json(_Digests, read_json(digest), str(digest)).files
    except DamagedError:  # not there, or damaged: then its file cannot be told from a damaged one
        return []


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
