"""Planning: read, tokenize and align documents, and write the plan file of each shard. No model is in memory.

Before that, a look at the first documents tells how many pairs the texts will give, and how much disk they take.

A shard is closed at the first piece of text with which it has its pairs, so no piece is split. After each shard a small
file says how far the texts were read; an interrupted plan reads up to there without tokenizing and goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeldiff.console import progress
from modeldiff.errors import InputError
from modeldiff.harvest.report import Counts
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.lm.chat import ChatError
from modeldiff.records import from_json
from modeldiff.sides import SIDES
from modeldiff.texts.align import Alignment, align
from modeldiff.texts.readers import COMPRESSED
from modeldiff.texts.sources import LeftOut, Record, Source, mix
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.activations import plan_name
from modeldiff.workspace.bits import bytes_per_value
from modeldiff.workspace.files import read_json
from modeldiff.workspace.kept import is_sound, keep_json
from modeldiff.workspace.plan import Document, PairTable, ShardPlan, Tokens, write_plan
from modeldiff.workspace.stage import Work

# Enough for a share of kept tokens within a few percent, in well under a second.
_LOOK_DOCUMENTS = 64
# So many records are looked through for them.
_LOOK_RECORDS = 10_000
# For the uncertainty of the look, HDF5's own structures and the last chunk of each file.
_MARGIN = 1.05
_BYTES_PER_TOKEN, _BYTES_PER_PAIR, _BYTES_PER_DOCUMENT = 12, 24, 40  # see workspace/plan.py

# A text that both models read at once, and its pairs.
Piece = tuple[Document, PairTable]


@dataclass(frozen=True)
class Look:
    """What the first documents say about the rest."""

    pairs: int
    """The pairs asked for, or what the texts are likely to give if that is clearly less."""
    pairs_in_texts: int | None
    """Estimate for all the texts; None where the size of a source does not tell how much text it holds."""
    plan_bytes_per_pair: float
    shares: dict[str, Any]
    """Shares kept, see report.Counts.shares."""


def bytes_needed(pairs: int, widths: dict[str, int], encoding: str, plan_bytes_per_pair: float) -> int:
    """Bytes on disk of a store with so many pairs: rows of both sides, the plan, and 5 %."""
    rows = sum(widths.values()) * bytes_per_value(encoding)
    return int(pairs * (rows + plan_bytes_per_pair) * _MARGIN)


@dataclass
class Cursor:
    """Where the plan stands after a shard."""

    shards: list[int] = field(default_factory=list)
    """Pairs of each shard so far."""
    records: int = 0
    """Records that are wholly planned."""
    pieces: int = 0
    """Pieces of the next record that are planned already."""
    labels: list[str] = field(default_factory=list)
    """Source labels, in order of first appearance."""
    pairs_by_source: dict[str, int] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    """See report.Counts."""
    finished: bool = False
    ran_out: bool = False
    """True when the texts ended before the pairs asked for were there."""

    @property
    def pairs(self) -> int:
        return sum(self.shards)


@dataclass(frozen=True)
class Planner:
    """What the pairs are planned from."""

    settings: HarvestSettings
    sources: list[Source]
    readers: dict[str, Reader]
    context: dict[str, int]
    """By side, the most tokens that a model reads at once."""

    def look(self) -> Look:
        """Tokenize and align the first documents. Raises InputError when a text cannot be used, or there are none."""
        counts = Counts()
        pairs = plan_bytes = text_bytes = 0
        for record in itertools.islice(self._records(), _LOOK_RECORDS):
            if counts.data["documents"] == _LOOK_DOCUMENTS:
                break
            text_bytes += len(record.text.encode("utf-8", "surrogatepass"))
            for document, found in self.pieces(record, counts):
                pairs += len(found)
                tokens = sum(len(one.ids) for one in document.tokens.values())
                text = len(document.text.encode("utf-8", "surrogatepass"))
                plan_bytes += text + tokens * _BYTES_PER_TOKEN + len(found) * _BYTES_PER_PAIR + _BYTES_PER_DOCUMENT
        if not counts.data["documents"] and counts.data["left_out"]["records"]:
            raise InputError(f"no text can be used: {LeftOut(counts.data['left_out'])}")
        if not text_bytes:
            raise InputError("--sample left no document: choose a larger share")
        expected, in_texts = self.settings.pairs, None
        if not any(source.hub or Path(source.location).suffix.lower() in COMPRESSED for source in self.sources):
            size = sum(Path(source.location).stat().st_size for source in self.sources)
            in_texts = int(pairs * size * self.settings.sample / text_bytes)
            # JSON fields and uneven texts make the estimate rough.
            expected = min(expected, 2 * in_texts)
        return Look(expected, in_texts, plan_bytes / max(pairs, 1), counts.shares())

    def plan(self, work: Work) -> Cursor:
        """Write the plan files that are missing. Raises InputError: a text cannot be used, or no pair is found."""
        cursor = _resume(work)
        if cursor.finished:
            return cursor
        counts = Counts(cursor.counts)
        shard: list[Piece] = []
        pairs_asked, shard_pairs = self.settings.pairs, self.settings.shard_pairs
        left, wanted = pairs_asked - cursor.pairs, shard_pairs
        with progress("plan", pairs_asked, "pairs", done=cursor.pairs) as bar:
            for document, found, position in self._unplanned(cursor, counts):
                pairs = _first(found, left)
                shard.append((document, pairs))
                bar.advance(len(pairs))
                left, wanted = left - len(pairs), wanted - len(pairs)
                if left and wanted > 0:
                    continue
                cursor.records, cursor.pieces = position
                cursor.counts, cursor.finished = counts.data, not left
                _close(work, cursor, shard)
                if not left:
                    return cursor
                shard, wanted = [], shard_pairs
        cursor.counts, cursor.finished, cursor.ran_out = counts.data, True, True
        if shard:
            _close(work, cursor, shard)
        elif cursor.shards:
            keep_json(_cursor_path(work, len(cursor.shards) - 1), asdict(cursor))
        else:
            raise InputError(
                f"no pair of tokens was found in {counts.data['documents']} documents: "
                "check the texts, or keep pairs inside words too with --pair-at tokens"
            )
        return cursor

    def _unplanned(self, cursor: Cursor, counts: Counts) -> Iterator[tuple[Document, PairTable, tuple[int, int]]]:
        """The pieces after the cursor, each with the `records` and `pieces` of a cursor behind it."""
        skipped = cursor.pieces
        for number, record in itertools.islice(enumerate(self._records()), cursor.records, None):
            if record.source not in cursor.labels:
                cursor.labels.append(record.source)
            # A record of which a part is planned was counted then.
            pieces = self.pieces(record, None if skipped else counts, cursor.labels.index(record.source), number)
            for done, (document, pairs) in enumerate(pieces[skipped:], skipped + 1):
                yield document, pairs, (number, done) if done < len(pieces) else (number + 1, 0)
            skipped = 0

    def _records(self) -> Iterator[Record]:
        settings = self.settings
        fields = settings.text_field, settings.source_field
        return mix(self.sources, *fields, sample=settings.sample, seed=settings.seed)

    def pieces(self, record: Record, counts: Counts | None, source: int = 0, index: int = 0) -> list[Piece]:
        """The pieces of one record that hold pairs, of at most `context` tokens per side, special tokens included.

        A document that fits is one piece, and a chat that does not fit loses its end. A longer text is cut after
        matches, at a word end where there is one. The special tokens that the tokenizer puts around a text stand around
        every piece; those in a text stand where they stand in it. What comes after the last match that fits no piece is
        left out.

        counts: where to count what was kept and lost; source: index of the record's label; index: its running number.
        """
        tokens, problem = self._read(record)
        if problem:
            if counts:
                LeftOut(counts.data["left_out"], strict=self.settings.strict).add(record, problem)
            return []
        if record.messages and any(len(tokens[side].ids) > self.context[side] for side in SIDES):
            if counts:
                counts.data["chats_cut"] += 1
            for side, one in tokens.items():
                read = slice(self.context[side])
                tokens[side] = Tokens(one.ids[read], one.starts[read], one.ends[read])
        decode = {side: self.readers[side].decode for side in SIDES} if self.settings.align == "greedy" else None
        alignment = align(record.text, tokens, self.settings.pair_at, decode)
        added = {side: (0, 0) if record.messages else self.readers[side].added for side in SIDES}
        pieces, matches = _cut(record.text, tokens, alignment, self.context, added)
        if counts:
            counts.add(record.text, alignment, matches)
        return [(Document(text, source, index, read), pairs) for text, read, pairs in pieces if len(pairs)]

    def _read(self, record: Record) -> tuple[dict[str, Tokens], str]:
        """(the tokens of both sides; why there are none, if so)."""
        try:
            return {side: self.readers[side].read(record) for side in SIDES if not record.problem}, record.problem
        except ChatError as error:
            return {}, str(error)


def _resume(work: Work) -> Cursor:
    """The cursor after the last shard that is planned; what was planned behind a damaged one is planned again."""
    cursor = Cursor()
    while work.has(plan_name(len(cursor.shards))) and is_sound(path := _cursor_path(work, len(cursor.shards))):
        cursor = from_json(Cursor, read_json(path), str(path))
    return cursor


def _close(work: Work, cursor: Cursor, shard: list[Piece]) -> None:
    number = len(cursor.shards)
    cursor.shards.append(sum(len(pairs) for _, pairs in shard))
    for document, pairs in shard:
        label = cursor.labels[document.source]
        cursor.pairs_by_source[label] = cursor.pairs_by_source.get(label, 0) + len(pairs)
    # The cursor first: with the plan file but without it, the shard would have to be planned again.
    keep_json(_cursor_path(work, number), asdict(cursor))
    write_shard(work, number, shard)


def _cursor_path(work: Work, shard: int) -> Path:
    return work.resume / f"plan-{shard:05d}.json"


def write_shard(work: Work, number: int, pieces: list[Piece]) -> None:
    tables = [pairs for _, pairs in pieces]
    pairs = PairTable(
        document=np.repeat(np.arange(len(tables), dtype=np.int32), [len(one) for one in tables]),
        token={side: np.concatenate([one.token[side] for one in tables]) for side in SIDES},
        char_end=np.concatenate([one.char_end for one in tables]),
        window={side: np.concatenate([one.window[side] for one in tables]) for side in SIDES},
    )
    name = plan_name(number)
    temporary = work.temporary(name)
    write_plan(temporary, ShardPlan([document for document, _ in pieces], pairs))
    work.commit(temporary, name)


def _first(pairs: PairTable, n: int) -> PairTable:
    token, window = ({side: by_side[side][:n] for side in SIDES} for by_side in (pairs.token, pairs.window))
    return PairTable(pairs.document[:n], token, pairs.char_end[:n], window)


def _cut(
    text: str,
    tokens: dict[str, Tokens],
    alignment: Alignment,
    context: dict[str, int],
    added: dict[str, tuple[int, int]],
) -> tuple[list[tuple[str, dict[str, Tokens], PairTable]], int]:
    """(the pieces of a document as text, tokens by side and pairs; how many of its matches are in them). added: by
    side, how many tokens stand before and after every piece."""
    matches = len(alignment.char_end)
    if not matches:
        return [], 0
    head = {side: added[side][0] for side in SIDES}
    tail = {side: len(tokens[side].ids) - added[side][1] for side in SIDES}
    room = {side: context[side] - sum(added[side]) for side in SIDES}
    pieces = []
    first, begin, char_start = 0, head, 0
    while (stop := _last_that_fits(alignment, first, begin, room)) > first:
        end = {side: int(alignment.token[side][stop - 1]) + 1 for side in SIDES}
        char_stop = int(alignment.char_end[stop - 1])
        if stop == matches and all(tail[side] - begin[side] <= room[side] for side in SIDES):
            end, char_stop = tail, len(text)
        read = {
            side: _slice(one, (head[side], tail[side]), begin[side], end[side], char_start, char_stop)
            for side, one in tokens.items()
        }
        shift = {side: head[side] - begin[side] for side in SIDES}
        pieces.append((text[char_start:char_stop], read, _pairs(alignment, first, stop, char_start, shift)))
        first, begin, char_start = stop, end, char_stop
    return pieces, first


def _last_that_fits(alignment: Alignment, first: int, begin: dict[str, int], room: dict[str, int]) -> int:
    """The match to cut after (exclusive): the last word end that fits, else the last match that fits."""
    fits = min(int(np.searchsorted(alignment.token[s], begin[s] + room[s], side="left")) for s in SIDES)
    if fits == len(alignment.char_end):
        return fits
    at_word_end = np.flatnonzero(alignment.at_word_end[first:fits])
    return first + int(at_word_end[-1]) + 1 if len(at_word_end) else max(fits, first)


def _slice(tokens: Tokens, inner: tuple[int, int], begin: int, end: int, char_start: int, char_stop: int) -> Tokens:
    """The tokens begin..end between those before and after the `inner` ones; offsets count from `char_start`."""
    chosen = np.concatenate([np.arange(inner[0]), np.arange(begin, end), np.arange(inner[1], len(tokens.ids))])
    outside = tokens.starts[chosen] < 0
    starts, ends = (
        np.where(outside, -1, np.clip(offsets[chosen] - char_start, 0, char_stop - char_start)).astype(np.int32)
        for offsets in (tokens.starts, tokens.ends)
    )
    return Tokens(tokens.ids[chosen], starts, ends)


def _pairs(alignment: Alignment, first: int, stop: int, char_start: int, shift: dict[str, int]) -> PairTable:
    """The pairs among the matches first..stop; shift: by side, what to add to a token's index in the document."""
    rows = first + np.flatnonzero(alignment.kept[first:stop])
    return PairTable(
        document=np.zeros(len(rows), np.int32),
        token={side: (alignment.token[side][rows] + shift[side]).astype(np.int32) for side in SIDES},
        char_end=(alignment.char_end[rows] - char_start).astype(np.int32),
        window={side: alignment.window[side][rows].astype(np.int32) for side in SIDES},
    )
