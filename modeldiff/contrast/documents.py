"""Documents as both models read them, the places in them from which both can go on, and which of these are continued.

A place of a plain text is where a token of either model ends with a word (texts/align.py); of a chat, the end of a
user's message, where each model's own template opens the answer; of a prompt, its end. The last two are *given*.

Layout (normative; of what continuations.py writes):
    continuations.json
        format
        models, revisions           by side: hub name or folder; revision, or null
        documents, places           number
        sources                     number of places by source
        mean_divergence             of the places, bits
    documents.jsonl                 a line for each text of which places were continued
        text, source, number        as in `Document`
        messages                    of a chat, each with role and content; else null
    places.jsonl                    a line for each place, document by document
        document, end, divergence, drawn    as in `Place`; document: from 0 on, a line of documents.jsonl
    said_{a,b}.jsonl                for each place, in that order, the list of what the model said: a text a draw

Legend: T tokens that a model reads, N candidate places.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeldiff.errors import InputError
from modeldiff.lm.chat import uses_chat
from modeldiff.sides import SIDES
from modeldiff.texts.align import align
from modeldiff.texts.readers import read_lines
from modeldiff.texts.sources import LeftOut, Record, parse_source, read_source
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.plan import Tokens

# A longer text is read as one passage of it, drawn at random: about as much as fits into 512 tokens.
PASSAGE_CHARS = 2000
# Places of a plain text whose divergence is looked at.
CANDIDATES = 8
# Words before a place of a plain text, at least.
_LEAST_BEFORE = 4
# Documents are drawn from the first so many times their number.
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
    messages: tuple[dict[str, str], ...] = ()
    """Of a chat."""

    def prompt(self, side: str, end: int) -> list[int]:
        cuts = [(reading, cut) for reading in self.readings[side] for cut in reading.cuts]
        reading, cut = cuts[self.ends.index(end)]
        return reading.ids[:cut]


@dataclass(frozen=True)
class Place:
    """One place that both models continue from."""

    document: int
    """Position in the list of documents."""
    end: int
    """Characters of the document before the place."""
    divergence: float
    """Of the two models' next words there, bits."""
    drawn: str
    """uniform, divergence, or given."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """By side, one text a draw; empty before the models have continued."""

    @property
    def given(self) -> bool:
        """What is said there begins an answer."""
        return self.drawn == "given"


def drawn_documents(records: Iterable[Record], wanted: int, seed: int) -> list[tuple[int, Record]]:
    """(number, record) of `wanted` records drawn evenly from the first so many, in order; all where there are fewer."""

    def key(numbered: tuple[int, Record]) -> bytes:
        return hashlib.blake2b(f"{seed}:{numbered[0]}".encode(), digest_size=8).digest()

    drawn = heapq.nsmallest(wanted, enumerate(islice(records, wanted * _LOOK_THROUGH)), key)
    return sorted(drawn, key=lambda numbered: numbered[0])


def open_document(
    record: Record, number: int, readers: dict[str, Reader], context: dict[str, int], seed: int, *, prompt: bool = False
) -> Document | None:
    """The document of a text, with up to CANDIDATES places, or of a chat or a prompt; None where it has no place.
    `context`: tokens that a model may read, by side."""
    if prompt or record.messages:
        return open_given(record, number, readers, context)
    rng = random.Random(f"{seed}:{number}")
    text = passage(record.text, rng)
    tokens = {side: readers[side].read(Record(record.source, text)) for side in SIDES}
    last, end = readable_pairs(text, tokens, context)
    at = np.flatnonzero(end < len(text.rstrip()))[_LEAST_BEFORE:].tolist()
    if not at:
        return None
    chosen = sorted(rng.sample(at, min(CANDIDATES, len(at))))
    cuts = {side: (last[side][chosen] + 1).tolist() for side in SIDES}
    readings = {side: [Reading(tokens[side].ids[: cuts[side][-1]].tolist(), cuts[side])] for side in SIDES}
    return Document(text, record.source, number, end[chosen].tolist(), readings)


def readable_pairs(
    text: str, read: dict[str, Tokens], context: dict[str, int]
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """(by side, the token that each pair of a text ends with; characters before its end), as far as both models can
    read."""
    alignment = align(text, read)
    fits = alignment.kept & np.all([alignment.token[side] < context[side] for side in SIDES], axis=0)
    return {side: alignment.token[side][fits] for side in SIDES}, alignment.char_end[fits]


def passage(text: str, rng: random.Random) -> str:
    """The text, or PASSAGE_CHARS of a longer one, from after a blank."""
    if len(text) <= PASSAGE_CHARS:
        return text
    start = rng.randrange(len(text) - PASSAGE_CHARS + 1)
    if start:
        blank = next((i for i in range(start, min(len(text), start + PASSAGE_CHARS)) if text[i].isspace()), start - 1)
        start = blank + 1
    return text[start : start + PASSAGE_CHARS]


def open_given(record: Record, number: int, readers: dict[str, Reader], context: dict[str, int]) -> Document | None:
    """The document of a chat, or of a prompt; None where no place fits into what the models may read."""
    ends: list[int] = []
    readings: dict[str, list[Reading]] = {side: [] for side in SIDES}
    for end in given_ends(record):
        ids = {side: given_tokens(record, end, readers[side]).ids.tolist() for side in SIDES}
        if not all(0 < len(ids[side]) <= context[side] for side in SIDES):
            break
        ends.append(end)
        for side in SIDES:
            readings[side].append(Reading(ids[side], [len(ids[side])]))
    if not ends:
        return None
    return Document(record.text, record.source, number, ends, readings, given=True, messages=record.messages)


def given_ends(record: Record) -> list[int]:
    """Characters before the end of each user's message of a chat; those of the whole prompt."""
    if not record.messages:
        return [len(record.text)]
    stops = np.cumsum([len(message["content"]) + 1 for message in record.messages]) - 1
    return [int(stop) for stop, message in zip(stops, record.messages, strict=True) if message["role"] == "user"]


def given_tokens(record: Record, end: int, reader: Reader) -> Tokens:
    """What a model reads before the place at `end` of a chat or a prompt: of a chat up to the opening of the answer; a
    prompt is put to a model with a chat template as a user's message."""
    if record.messages:
        users = [i for i, message in enumerate(record.messages) if message["role"] == "user"]
        messages = record.messages[: users[given_ends(record).index(end)] + 1]
    elif uses_chat(reader.tokenizer, "auto"):
        messages = ({"role": "user", "content": record.text},)
    else:
        return reader.read(record)
    return reader.read_opened(Record(record.source, record.text, messages))


def read_prompts(path: Path, text_field: str = "text", source_field: str = "source") -> list[Record]:
    """The prompts of a file: the lines of a .txt file, or the records of a .jsonl or .parquet file. Raises InputError:
    there is no such file, another suffix, a record that cannot be used, or no prompt."""
    source = parse_source(str(path))
    if path.suffix.lower() == ".txt":
        records: Iterable[Record] = (Record("prompts", line) for line in read_lines(path))
    else:
        records = LeftOut(strict=True).usable(read_source(source, text_field, source_field))
    found = [
        Record("prompts", one.text, one.messages, f"{path}, prompt {number}") for number, one in enumerate(records, 1)
    ]
    if not found:
        raise InputError(f"file of prompts {path} holds no prompt")
    return found


def choose_places(
    documents: list[Document], divergence_N: NDArray[np.float32], *, places: int, uniform: float, seed: int
) -> list[Place]:
    """About `places` places, as many of each document as of any other, in the order of the documents.

    Even places (a share `uniform`) show everyday rates; a habit shows where its first word is due, and there the models
    diverge. The others are drawn in proportion to the square of the divergence, that of all candidates in order.
    """
    each = max(1, round(places / max(1, len(documents))))
    chosen: list[Place] = []
    counts = [0 if one.given else min(each, len(one.ends)) for one in documents]
    even = _evenly_drawn(counts, [one.number for one in documents], uniform, seed)
    left = iter(divergence_N.astype(float).tolist())
    for position, document in enumerate(documents):
        of_candidate = list(islice(left, len(document.ends)))
        if document.given:
            picked = [(i, "given") for i in range(min(each, len(document.ends)))]
        else:
            rng = random.Random(f"{seed}:places:{document.number}")
            picked = _pick(of_candidate, even[position], counts[position] - even[position], rng)
        chosen += [Place(position, document.ends[i], of_candidate[i], how) for i, how in sorted(picked)]
    return chosen


def _evenly_drawn(counts: list[int], numbers: list[int], uniform: float, seed: int) -> list[int]:
    """How many of each document's places are drawn evenly: a share `uniform` of all. What does not come out even is
    carried over from document to document in random order: sources follow each other regularly, and one must not get
    other places than the next one."""
    drawn, owed = [0] * len(counts), 0.0
    for i in sorted(range(len(counts)), key=lambda i: random.Random(f"{seed}:even:{numbers[i]}").random()):
        owed += uniform * counts[i]
        drawn[i] = min(counts[i], int(owed + 1e-9))
        owed -= drawn[i]
    return drawn


def _pick(of_candidate: list[float], evenly: int, differing: int, rng: random.Random) -> list[tuple[int, str]]:
    left = list(range(len(of_candidate)))
    picked = []
    for how in ["uniform"] * evenly + ["divergence"] * differing:
        weights = [of_candidate[i] ** 2 + 1e-9 for i in left] if how == "divergence" else None
        (one,) = rng.choices(left, weights)
        left.remove(one)
        picked.append((one, how))
    return picked
