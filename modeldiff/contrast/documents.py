"""Documents as both models read them, and the places in them from which both can go on.

A place of a plain text is where a token of either model ends with a word (texts/align.py); of a chat, the end of a
user's message, where each model's own template opens the answer; of a prompt, its end.

Legend: T tokens that a model reads, N places of a document.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeldiff.errors import InputError
from modeldiff.lm.chat import uses_chat
from modeldiff.sides import SIDES
from modeldiff.texts.align import Alignment, align
from modeldiff.texts.readers import read_jsonl, read_lines
from modeldiff.texts.sources import Record, characters
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.plan import Tokens

# A longer text is read as one stretch of it, drawn at random: about as much as fits into 512 tokens.
PASSAGE_CHARS = 2000
# Places of a plain text whose divergence is looked at.
CANDIDATES = 8
# A place has at least so many words before it.
_LEAST_BEFORE = 4
# So many times the documents that are wanted are looked through for them.
_LOOK_THROUGH = 50


@dataclass(frozen=True)
class Reading:
    """What one model reads of a document, in one go, up to some of its places."""

    ids: list[int]
    """(T,) token ids, special tokens included."""
    cuts: list[int]
    """For each place: how many of the tokens stand before it."""


@dataclass(frozen=True)
class Document:
    """One text with the places that both models can go on from."""

    text: str
    source: str
    number: int
    """Running number among all texts read."""
    ends: list[int]
    """(N,) characters of the text before each place, ascending."""
    readings: dict[str, list[Reading]]
    """By side: together they have N cuts, in order."""
    given: bool = False
    """Whether the places are the ends of a prompt or of a user's messages."""

    def prompt(self, side: str, place: int) -> list[int]:
        """The tokens that a model reads before a place."""
        for reading in self.readings[side]:
            if place < len(reading.cuts):
                return reading.ids[: reading.cuts[place]]
            place -= len(reading.cuts)
        raise IndexError(place)


def drawn_documents(records: Iterable[Record], wanted: int, seed: int) -> list[tuple[int, Record]]:
    """(number, record) of `wanted` records drawn evenly from the first so many, in order; all where there are fewer."""
    best: list[tuple[int, int, Record]] = []
    for number, record in enumerate(records):
        if number >= wanted * _LOOK_THROUGH:
            break
        entry = (-_hash(seed, number), number, record)
        if len(best) < wanted:
            heapq.heappush(best, entry)
        else:
            heapq.heappushpop(best, entry)
    return sorted((number, record) for _, number, record in best)


def aligned(tokens: dict[str, Tokens], text: str) -> Alignment:
    """Where both models' tokens end with a word."""
    return align(text, tokens)


def open_document(
    record: Record, number: int, readers: dict[str, Reader], context: dict[str, int], seed: int
) -> Document | None:
    """The document with up to CANDIDATES places; None where there is none.

    Args:
        context: tokens that a model may read, by side.
    """
    rng = random.Random(f"{seed}:{number}")
    if record.messages:
        return _chat(record, number, readers, context)
    text = passage(record.text, rng)
    tokens = {side: readers[side].read(Record(record.source, text)) for side in SIDES}
    alignment = aligned(tokens, text)
    cuts = {side: alignment.token[side] + 1 for side in SIDES}
    usable = alignment.kept & (alignment.char_end < len(text.rstrip()))
    for side in SIDES:
        usable &= cuts[side] <= context[side]
    at = np.flatnonzero(usable)[_LEAST_BEFORE:].tolist()
    if not at:
        return None
    chosen = sorted(rng.sample(at, min(CANDIDATES, len(at))))
    readings = {}
    for side in SIDES:
        mine = [int(cuts[side][i]) for i in chosen]
        readings[side] = [Reading(tokens[side].ids[: mine[-1]].tolist(), mine)]
    return Document(text, record.source, number, [int(alignment.char_end[i]) for i in chosen], readings)


def passage(text: str, rng: random.Random) -> str:
    """The text, or a stretch of PASSAGE_CHARS of a longer one that begins after a blank."""
    if len(text) <= PASSAGE_CHARS:
        return text
    start = rng.randrange(len(text) - PASSAGE_CHARS + 1)
    if start:
        blank = next((i for i in range(start, min(len(text), start + PASSAGE_CHARS)) if text[i].isspace()), start - 1)
        start = blank + 1
    return text[start : start + PASSAGE_CHARS]


def _chat(record: Record, number: int, readers: dict[str, Reader], context: dict[str, int]) -> Document | None:
    ends: list[int] = []
    readings: dict[str, list[Reading]] = {side: [] for side in SIDES}
    end = -1
    for i, message in enumerate(record.messages):
        end += len(message["content"]) + 1
        if message["role"] != "user":
            continue
        opened = Record(record.source, record.text, record.messages[: i + 1])
        ids = {side: readers[side].read_opened(opened).ids.tolist() for side in SIDES}
        if any(len(ids[side]) > context[side] for side in SIDES):
            break
        ends.append(end)
        for side in SIDES:
            readings[side].append(Reading(ids[side], [len(ids[side])]))
    return Document(record.text, record.source, number, ends, readings, given=True) if ends else None


def whole_tokens(record: Record, reader: Reader, *, given: bool) -> Tokens:
    """A whole document as a model reads it.

    Args:
        given: its place is its end: a prompt, which is put to a chat model as a user's message.
    """
    return _prompt_tokens(record.text, reader) if given and not record.messages else reader.read(record)


def given_tokens(record: Record, end: int, reader: Reader) -> Tokens | None:
    """What a model reads before a place at the end of a prompt or of a user's message; None: of a plain text, which it
    reads up to the place.

    Args:
        end: characters of the document before the place.
    """
    if not record.messages:
        return _prompt_tokens(record.text, reader) if end == len(record.text) else None
    stop = -1
    for i, message in enumerate(record.messages):
        stop += len(message["content"]) + 1
        if stop == end and message["role"] == "user":
            return reader.read_opened(Record(record.source, record.text, record.messages[: i + 1]))
    return None


def _prompt_tokens(prompt: str, reader: Reader) -> Tokens:
    if uses_chat(reader.tokenizer, "auto"):
        return reader.read_opened(Record("prompts", prompt, ({"role": "user", "content": prompt},)))
    return reader.read(Record("prompts", prompt))


def read_prompts(path: Path, text_field: str) -> list[str]:
    """The prompts of a file: the lines of a .txt file, or the text field of the records of a .jsonl file.

    Raises:
        InputError: there is no such file, another suffix, a record without the field, or no prompt.
    """
    if not path.is_file():
        raise InputError(f"there is no file of prompts {path}: expected .txt (one a line) or .jsonl")
    if path.suffix.lower() == ".jsonl":
        found = []
        for where, record in read_jsonl(path):
            if not isinstance(record.get(text_field), str):
                raise InputError(f"{where}: field '{text_field}' is missing or no text; choose one with --text-field")
            found.append(characters(record[text_field]))
    elif path.suffix.lower() == ".txt":
        found = [line.rstrip("\r\n") for line in read_lines(path)]
    else:
        raise InputError(f"file of prompts {path} ends in '{path.suffix}': expected .txt (one a line) or .jsonl")
    found = [prompt for prompt in found if prompt.strip()]
    if not found:
        raise InputError(f"file of prompts {path} holds no prompt")
    return found


def open_prompts(
    prompts: list[str], first: int, readers: dict[str, Reader], context: dict[str, int]
) -> Iterator[Document]:
    """A document for each prompt that fits, its only place at its end.

    Args:
        first: the running number of the first one.
    """
    for number, prompt in enumerate(prompts, first):
        ids = {side: _prompt_tokens(prompt, readers[side]).ids.tolist() for side in SIDES}
        if all(0 < len(ids[side]) <= context[side] for side in SIDES):
            readings = {side: [Reading(ids[side], [len(ids[side])])] for side in SIDES}
            yield Document(prompt, "prompts", number, [len(prompt)], readings, given=True)


def _hash(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), "big")
