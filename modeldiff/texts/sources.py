"""Text sources: what a user may give as `--texts`, read record by record, mixed by weight.

Everything here is deterministic, so that an interrupted harvest finds its place again by reading.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldiff.errors import InputError
from modeldiff.texts.readers import CHATS, READERS, SUFFIXES, dataset_identity, read_dataset, split_long
from modeldiff.workspace.files import sha256_json

HUB_PREFIX = "hf:"
# A longer text is read as several documents.
MOST_CHARS = 100_000
# Reasons that are counted by themselves, records that are kept by name, and of these how many a message names.
_MOST_REASONS, _MOST_NAMED, _MOST_SAID = 20, 20, 3
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Source:
    label: str
    """Kept with every text of it that has no `source` of its own."""
    location: str
    """Path of a file, or NAME[:CONFIG[:SPLIT]] of a hub data set."""
    weight: float
    """Its share of the characters is weight / sum of weights, as long as no source has run out."""
    hub: bool
    """True for a hub data set."""


@dataclass(frozen=True)
class Record:
    """One document of a source: a text, or a chat."""

    source: str
    """Label."""
    text: str
    """The text; of a chat, the contents of its messages, joined by line ends."""
    messages: tuple[dict[str, str], ...] = ()
    """The messages of a chat; empty for a plain text."""
    where: str = ""
    """File and line, for messages."""
    problem: str = ""
    """Why it cannot be used, if it cannot; its text is empty then."""


class LeftOut:
    """Records that could not be used: how many, for which reasons, and the first ones by name. `data` is JSON."""

    def __init__(self, data: dict[str, Any] | None = None, *, strict: bool = False) -> None:
        self.data: dict[str, Any] = {"records": 0, "reasons": {}, "first": []} if data is None else data
        self._strict = strict

    def add(self, record: Record, problem: str) -> None:
        """Count a record. Raises InputError: none may be left out."""
        if self._strict:
            raise InputError(f"{record.where}: {problem}")
        reasons, first = self.data["reasons"], self.data["first"]
        reason = problem if problem in reasons or len(reasons) < _MOST_REASONS else "other reasons"
        self.data["records"] += 1
        reasons[reason] = reasons.get(reason, 0) + 1
        if len(first) < _MOST_NAMED:
            first.append(f"{record.where}: {problem}")

    def usable(self, records: Iterable[Record]) -> Iterator[Record]:
        """Those without a problem; the others are counted."""
        for record in records:
            if record.problem:
                self.add(record, record.problem)
            else:
                yield record

    def __str__(self) -> str:
        count, first = self.data["records"], self.data["first"]
        return f"{count:,} {'record' if count == 1 else 'records'} left out: {'; '.join(first[:_MOST_SAID])}" + (
            f"; and {count - _MOST_SAID:,} more" if count > _MOST_SAID else ""
        )


def parse_source(entry: str) -> Source:
    """The Source that `[LABEL=]SOURCE[@WEIGHT]` means; a file of that very name is taken as it is. Raises InputError:
    no such file, a suffix that is not read, or a weight that is no positive number."""
    label, rest, weight = _label_and_weight(entry)
    if rest.startswith(HUB_PREFIX):
        name = rest.removeprefix(HUB_PREFIX)
        if not name or name.startswith(":"):
            raise InputError(f"text source '{entry}' names no data set: expected hf:NAME[:CONFIG[:SPLIT]]")
        return Source(label or name.split(":")[0], name, weight, hub=True)
    path = Path(rest)
    if path.is_dir():
        raise InputError(f"text source {rest} is a folder: expected {SUFFIXES} files (try {rest}/*.txt)")
    if not path.is_file():
        raise InputError(f"there is no text file {rest}: expected a {SUFFIXES} file, or hf:NAME")
    if path.suffix.lower() not in READERS:
        raise InputError(f"text file {rest} ends in '{path.suffix}': expected {SUFFIXES}")
    if path.stat().st_size == 0:
        raise InputError(f"text file {rest} is empty")
    return Source(label or path.stem, rest, weight, hub=False)


def _label_and_weight(entry: str) -> tuple[str | None, str, float]:
    label, rest = None, entry
    if Path(entry).is_file():
        return label, rest, 1.0
    head, equals, tail = entry.partition("=")
    if equals and head and "/" not in head and not Path(entry.rpartition("@")[0]).is_file():
        label, rest = head, tail
    if Path(rest).is_file() or "@" not in rest:
        return label, rest, 1.0
    rest, _, number = rest.rpartition("@")
    with suppress(ValueError):
        if 0 < float(number) < float("inf"):
            return label, rest, float(number)
    raise InputError(
        f"text source '{entry}': '{number}' after @ is no weight: there is no such file, "
        "and a weight is a positive number"
    )


def source_digest(source: Source, digest_file: Callable[[Path], str]) -> str:
    if source.hub:
        return sha256_json(dataset_identity(source.location, digest_file))
    return digest_file(Path(source.location))


def read_source(source: Source, text_field: str = "text", source_field: str = "source") -> Iterator[Record]:
    """The documents of one source, and the records that cannot be used; texts without a visible character are passed
    over. Raises InputError: no document can be used (naming the first file and line, and why), or the file cannot be
    read."""
    found, problems = False, list[str]()
    path = Path(source.location)
    read = read_dataset(source.location) if source.hub else READERS[path.suffix.lower()](path, text_field, source_field)
    for where, fields in read:
        try:
            if isinstance(fields, str):
                raise InputError(fields)
            record = _record(fields, text_field, source_field, source.label)
        except InputError as error:
            problems = problems or [f"{where}: {error}"]
            yield Record(source.label, "", where=where, problem=str(error))
            continue
        # A tokenizer holds hundreds of bytes for each token of a text. A chat cannot be cut.
        parts = [record.text] if record.messages else split_long(record.text, MOST_CHARS)
        for text in parts:
            if text.strip():
                found = True
                yield Record(record.source, text, record.messages, where)
    if not found:
        raise InputError("; ".join([f"text source {source.location} holds no text", *problems]))


def mix(
    sources: list[Source],
    text_field: str = "text",
    source_field: str = "source",
    *,
    sample: float = 1.0,
    seed: int = 0,
) -> Iterator[Record]:
    """What `read_source` gives of all sources, interleaved so that their characters keep the proportion of the weights.
    Of the documents a share, `sample`, is used, chosen by the seed; the others are read and passed over."""
    streams = [_sampled(read_source(s, text_field, source_field), i, sample, seed) for i, s in enumerate(sources)]
    waiting = {i: record for i, stream in enumerate(streams) if (record := next(stream, None)) is not None}
    given = [0.0] * len(sources)  # characters per weight so far
    while waiting:
        i = min(waiting, key=lambda one: (given[one], one))
        record = waiting.pop(i)
        yield record
        given[i] += len(record.text) / sources[i].weight
        following = next(streams[i], None)
        if following is not None:
            waiting[i] = following


def _sampled(records: Iterator[Record], source: int, sample: float, seed: int) -> Iterator[Record]:
    for number, record in enumerate(records):
        # A hash per document, not a random generator: the choice does not depend on what was read before.
        draw = hashlib.blake2b(f"{seed}:{source}:{number}".encode(), digest_size=8).digest()
        if sample >= 1 or int.from_bytes(draw, "big") < sample * 2**64:
            yield record


def _record(fields: dict[str, Any], text_field: str, source_field: str, label: str) -> Record:
    """Raises InputError: the fields are not those of a text or a chat."""
    own_label = _value(fields, source_field)
    if own_label is not None and not isinstance(own_label, str):
        found = type(own_label).__name__
        raise InputError(f"field '{source_field}' must be a text, found {found}; choose one with --source-field")
    label = own_label or label
    text = _value(fields, text_field)
    if isinstance(text, str):
        return Record(label, characters(text))
    chat = next((name for name in CHATS if fields.get(name) is not None), None)
    if text is None and chat:
        messages = _messages(chat, fields[chat])
        return Record(label, "\n".join(m["content"] for m in messages), messages)
    if text is not None or text_field in fields:
        raise InputError(f"field '{text_field}' must be a text, found {type(text).__name__}")
    names = ", ".join(sorted(fields)) or "none"
    raise InputError(f"field '{text_field}' is missing (fields: {names}); choose one with --text-field")


def _value(fields: dict[str, Any], name: str) -> Any:
    """The field of that name, or `c` in `b` in `a` for `a.b.c`; None where there is none."""
    if name in fields:
        return fields[name]
    first, _, rest = name.partition(".")
    inner = fields.get(first)
    return _value(inner, rest) if rest and isinstance(inner, dict) else None


def _messages(field: str, messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"field '{field}' must be a list of {{role, content}} with at least one")
    found = []
    for message in messages:
        role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "\n".join(part["text"] for part in content)
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(f"each of the '{field}' needs a text 'role' and a text 'content'")
        found.append({"role": role, "content": characters(content)})
    return tuple(found)


def characters(text: str) -> str:
    """The text with U+FFFD for lone surrogates: JSON can spell them, but tokenizers refuse them."""
    return _LONE_SURROGATE.sub("\ufffd", text)
