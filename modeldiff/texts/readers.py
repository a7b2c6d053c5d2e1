"""Reading texts, one record at a time, with errors that name the place. A kind of file is added here: its reader, and
its suffix in READERS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modeldiff.errors import DamagedError, InputError, MachineError, first_line

# Place for messages, and fields; or what is wrong with the record there.
Row = tuple[str, dict[str, Any] | str]

# A .txt file is cut at the first blank line after this many characters: about one window of 512 tokens.
TXT_DOCUMENT_CHARS = 2000
# Where no blank line comes, it is cut at the last line end or blank before so many characters.
TXT_MOST_CHARS = 2 * TXT_DOCUMENT_CHARS

CHATS = ("messages", "conversation")
"""Fields that hold a chat as a list of {role, content}; the first one that is there counts."""


def read_txt(path: Path, text_field: str, _source_field: str) -> Iterator[Row]:
    """The documents of a plain text file: paragraphs, grouped up to about 2,000 characters. Without blank lines a
    document ends at a line end, or at a blank, before 4,000 characters. Line ends are kept. Raises InputError: not
    UTF-8."""
    lines: list[str] = []
    size, first = 0, 1

    def documents() -> Iterator[Row]:
        for text in split_long("".join(lines), TXT_MOST_CHARS):
            yield f"{path}, from line {first}", {text_field: text}

    for number, line in enumerate(_lines(path), 1):
        if not line.strip() and size >= TXT_DOCUMENT_CHARS:
            yield from documents()
            lines, size, first = [], 0, number + 1
        elif line.strip() or lines:
            if size >= TXT_DOCUMENT_CHARS and size + len(line) > TXT_MOST_CHARS:
                yield from documents()
                lines, size, first = [], 0, number
            lines.append(line)
            size += len(line)
        else:
            first = number + 1
    yield from documents()


def read_jsonl(path: Path, _text_field: str, _source_field: str) -> Iterator[Row]:
    """The lines of a JSONL file; blank ones are passed over. Raises InputError: the file is not UTF-8."""
    return ((f"{path}, line {number}", _object(line)) for number, line in enumerate(_lines(path), 1) if line.strip())


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, fields) of each line of a JSONL file. Raises InputError: a line, which is named, is not a
    JSON object, or the file is not UTF-8."""
    for where, record in read_jsonl(path, "", ""):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        yield where, record


def _object(line: str) -> dict[str, Any] | str:
    """The JSON object, or why it is none."""
    try:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            return f"not valid JSON ({error.msg}, character {error.colno})"
        except ValueError:  # an integer of thousands of digits, most likely in a field that nobody reads
            record = json.loads(line, parse_int=float)
    except RecursionError:
        return "not valid JSON (nested too deeply)"
    return record if isinstance(record, dict) else f"expected a JSON object, found {type(record).__name__}"


def read_parquet(path: Path, text_field: str, source_field: str) -> Iterator[Row]:
    """The rows of a Parquet file; of its columns only the text, chats and the label are read. Raises MachineError:
    pyarrow is not installed; InputError: no column that could be used; DamagedError: not a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MachineError(f"reading {path} needs pyarrow: run `pip install 'modeldiff[parquet]'`") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            text, source = (name if name in names else name.split(".")[0] for name in (text_field, source_field))
            columns = [name for name in dict.fromkeys((text, *CHATS, source)) if name in names]
            if not {text, *CHATS} & set(columns):
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
        raise DamagedError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None


READERS: dict[str, Callable[[Path, str, str], Iterator[Row]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
"""By suffix: (path, field of the text, field of the label) -> rows."""
COMPRESSED = {".parquet"}
"""Suffixes of files whose size does not tell how much text they hold."""
SUFFIXES = f"{', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file that are not blank, without their ends. Raises InputError: it is not UTF-8."""
    return (line.rstrip("\r\n") for line in _lines(path) if line.strip())


def _lines(path: Path) -> Iterator[str]:
    """The lines with their ends; a byte-order mark is no part of the first."""
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


def split_long(text: str, most: int) -> Iterator[str]:
    """The text in parts of at most `most` characters, cut after a line end, else after a blank, else anywhere."""
    start = 0
    while len(text) - start > most:
        stop = start + most
        cut = text.rfind("\n", start, stop)
        if cut < start:
            cut = next((i for i in range(stop - 1, start, -1) if text[i].isspace()), stop - 1)
        yield text[start : cut + 1]
        start = cut + 1
    yield text[start:]


def read_dataset(location: str) -> Iterator[Row]:
    """The rows of a data set NAME[:CONFIG[:SPLIT]], streamed; NAME is of the hub, or a local folder of the same layout.
    Raises MachineError: the package `datasets` is not installed, or the hub does not answer; InputError: it cannot open
    the data set."""
    name, config, split = _name_config_split(location)
    try:
        import datasets
    except ImportError:
        raise MachineError(f"data set '{location}' needs a package: run `pip install 'modeldiff[datasets]'`") from None
    commit = _commit(name)
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True, revision=commit)
    except Exception as error:  # it passes on whatever its readers and its network library raise
        raise InputError(f"data set '{location}' cannot be opened: {first_line(error)}") from error
    for number, row in enumerate(rows, 1):
        yield f"data set {location}, row {number}", row


def dataset_identity(location: str, digest_file: Callable[[Path], str]) -> dict[str, Any]:
    """What identifies the content of a data set: its commit on the hub, or the digests of its folder's files. Raises
    InputError: there is no such data set; MachineError: the hub does not answer."""
    name, config, split = _name_config_split(location)
    content: Any = [name, _commit(name)]
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        content = {path.relative_to(name).as_posix(): digest_file(path) for path in files}
    return {"config": config, "split": split, "content": content}


def _name_config_split(location: str) -> tuple[str, str | None, str]:
    parts = location.split(":")
    if len(parts) > 3:
        raise InputError(f"data set '{location}' has too many parts: expected hf:NAME[:CONFIG[:SPLIT]]")
    name, config, split = parts + [""] * (3 - len(parts))
    return name, config or None, split or "train"


def _commit(name: str) -> str | None:
    """The newest commit of a data set on the hub; None for a local folder."""
    if Path(name).is_dir():
        return None
    from huggingface_hub import HfApi, errors

    try:
        return str(HfApi().dataset_info(name).sha)
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise InputError(f"there is no local folder and no data set on the hub named '{name}'") from None
    except Exception as error:  # the client passes on what its network library raises
        raise MachineError(f"the hub gave no answer for data set '{name}': {first_line(error)}") from error
