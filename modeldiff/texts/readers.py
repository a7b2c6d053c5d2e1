"""Reading text files, one record at a time, with errors that name the place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modeldiff.errors import DamagedError, InputError, MachineError

# A .txt file is cut at the first blank line after this many characters: about one window of 512 tokens.
TXT_DOCUMENT_CHARS = 2000
# Where no blank line comes, it is cut at the last line end or blank before so many characters.
TXT_MOST_CHARS = 2 * TXT_DOCUMENT_CHARS


def read_txt(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each document of a plain text file: paragraphs, grouped up to about 2,000 characters.

    Without blank lines a document ends at a line end, or at a blank, before 4,000 characters. Line ends are kept as
    they are in the file.

    Raises:
        InputError: the file is not UTF-8.
    """
    lines: list[str] = []
    size, first = 0, 1
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() and size >= TXT_DOCUMENT_CHARS:
            yield from _documents(path, first, lines)
            lines, size, first = [], 0, number + 1
        elif line.strip() or lines:
            if size >= TXT_DOCUMENT_CHARS and size + len(line) > TXT_MOST_CHARS:
                yield from _documents(path, first, lines)
                lines, size, first = [], 0, number
            lines.append(line)
            size += len(line)
        else:
            first = number + 1
    yield from _documents(path, first, lines)


def split_long(text: str, most: int) -> Iterator[str]:
    """The text in stretches of at most `most` characters, cut after a line end, else after a blank, else anywhere."""
    start = 0
    while len(text) - start > most:
        stop = start + most
        cut = text.rfind("\n", start, stop)
        if cut < start:
            cut = next((i for i in range(stop - 1, start, -1) if text[i].isspace()), stop - 1)
        yield text[start : cut + 1]
        start = cut + 1
    yield text[start:]


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line of a JSONL file; blank lines are passed over.

    Raises:
        InputError: a line is not a JSON object (named by its number), or the file is not UTF-8.
    """
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON ({error.msg}, character {error.colno})") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
        yield where, record


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file without their ends; a byte-order mark is no part of the first.

    Raises:
        InputError: the file is not UTF-8.
    """
    for line in _lines(path):
        yield line.rstrip("\r\n")


def read_parquet(path: Path, text_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, fields) of each row of a Parquet file; of its columns only the text, `messages` and `source` are read.

    Raises:
        MachineError: pyarrow is not installed.
        InputError: no column that could be used; DamagedError: not a Parquet file.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MachineError(f"reading {path} needs pyarrow: run `pip install 'modeldiff[parquet]'`") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in (text_field, "messages", "source") if name in names]
            if not {text_field, "messages"} & set(columns):
                raise InputError(
                    f"{path}: column '{text_field}' is missing (columns: {', '.join(names)}); "
                    "choose one with --text-field"
                )
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedError(f"{path}: cannot be read as Parquet ({_first_line(error)})") from None


def _documents(path: Path, first: int, lines: list[str]) -> Iterator[tuple[str, str]]:
    for text in split_long("".join(lines), TXT_MOST_CHARS):
        yield f"{path}, from line {first}", text


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        # newline="\n": a carriage return stays in the text, where both models shall read it.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                yield line
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text after line {number} ({error.reason}); convert it, e.g. with iconv"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
