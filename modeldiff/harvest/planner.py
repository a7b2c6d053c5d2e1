"""Planning: read, tokenize and align documents, and write the plan file of each shard. No model is in memory.

A shard is closed at the first piece of text with which it has its pairs, so no piece is split. After each shard a small
file says how far the texts were read; an interrupted plan reads up to there without tokenizing and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from modeldiff.console import progress
from modeldiff.errors import DamagedError, InputError
from modeldiff.harvest.report import Counts
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.harvest.windows import Piece, cut, truncate
from modeldiff.sides import SIDES
from modeldiff.texts.align import Alignment, content_of, finish, match_offsets
from modeldiff.texts.greedy import match_greedy
from modeldiff.texts.sources import Record, Source, mix
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.activations import plan_name
from modeldiff.workspace.files import write_json
from modeldiff.workspace.plan import Document, Ints, PairTable, ShardPlan, Tokens, write_plan
from modeldiff.workspace.stage import Work


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
    """Pairs so far, by label."""
    counts: dict[str, Any] = field(default_factory=dict)
    """See report.Counts."""
    finished: bool = False
    """True after the last shard."""
    ran_out: bool = False
    """True when the texts ended before the pairs asked for were there."""

    @property
    def pairs(self) -> int:
        return sum(self.shards)


@dataclass
class PlannedPiece:
    """What one stretch of text, read at once by both models, adds to a shard."""

    document: Document
    token: dict[str, Ints]
    char_end: Ints
    window: dict[str, Ints]

    def __len__(self) -> int:
        return len(self.char_end)


def make_plan(
    work: Work,
    settings: HarvestSettings,
    sources: list[Source],
    readers: dict[str, Reader],
    context: dict[str, int],
) -> Cursor:
    """Write all plan files that are missing.

    Args:
        context: most tokens per window, by side.

    Raises:
        InputError: a text cannot be used, or no pair was found in all texts.
    """
    cursor = _resume(work)
    if cursor.finished:
        return cursor
    with progress("plan", settings.pairs, "pairs", done=cursor.pairs) as bar:
        shard = _Shard()
        counts = Counts(cursor.counts or None)
        for number, record in enumerate(mix(sources, settings.text_field, sample=settings.sample, seed=settings.seed)):
            if number < cursor.records:
                continue
            if record.source not in cursor.labels:
                cursor.labels.append(record.source)
            resumed = cursor.pieces if number == cursor.records else 0
            pieces = plan_record(
                record, readers, settings, context, None if resumed else counts,
                source=cursor.labels.index(record.source), index=number,
            )  # fmt: skip
            for position, piece in enumerate(pieces):
                if position < resumed:
                    continue
                left = settings.pairs - cursor.pairs - shard.pairs
                shard.add(piece, left)
                bar.advance(min(len(piece), left))
                full = left <= len(piece)
                if full or shard.pairs >= settings.shard_pairs:
                    more = position + 1 < len(pieces)
                    cursor.records, cursor.pieces = (number, position + 1) if more else (number + 1, 0)
                    cursor.counts, cursor.finished = counts.data, full
                    _close(work, cursor, shard)
                    shard = _Shard()
                if full:
                    return cursor
        return _end_of_texts(work, cursor, shard, counts)


def plan_record(
    record: Record,
    readers: dict[str, Reader],
    settings: HarvestSettings,
    context: dict[str, int],
    counts: Counts | None,
    *,
    source: int = 0,
    index: int = 0,
) -> list[PlannedPiece]:
    """The pieces of one record that hold pairs.

    Args:
        counts: where to count what was kept and lost; None to count nothing.
        source: index of the record's label; index: running number of the record.
    """
    tokens = {side: readers[side].read(record) for side in SIDES}
    if record.messages:
        if counts and any(len(tokens[side].ids) > context[side] for side in SIDES):
            counts.data["chats_cut"] += 1
        tokens = {side: truncate(tokens[side], context[side]) for side in SIDES}
    alignment = align(record.text, tokens, readers, settings)
    pieces = cut(record.text, tokens, alignment, context) if len(alignment.char_end) else []
    if counts:
        _count(counts, record.text, alignment, pieces[-1].stop if pieces else 0)
    planned = (_planned(record.text, piece, alignment, source, index) for piece in pieces)
    return [piece for piece in planned if len(piece)]


def _count(counts: Counts, text: str, alignment: Alignment, counted: int) -> None:
    """Take in a document of which the first `counted` positions are in pieces."""
    kept = alignment.kept & (np.arange(len(alignment.kept)) < counted)
    last = {side: int(alignment.ordinal[side][counted - 1]) if counted else -1 for side in SIDES}
    lost = {side: len(alignment.content[side].token) - 1 - last[side] for side in SIDES}
    counts.add(text, alignment, kept, lost)


def align(text: str, tokens: dict[str, Tokens], readers: dict[str, Reader], settings: HarvestSettings) -> Alignment:
    """The alignment of one document by the method of the settings."""
    content = {side: content_of(text, tokens[side]) for side in SIDES}
    if settings.align == "greedy":
        matches = match_greedy(tokens, content, {side: readers[side].decode for side in SIDES})
    else:
        matches = match_offsets(content)
    return finish(text, content, matches, settings.pair_at)


def _planned(text: str, piece: Piece, alignment: Alignment, source: int, index: int) -> PlannedPiece:
    rows = piece.first + np.flatnonzero(alignment.kept[piece.first : piece.stop])
    document = Document(text[piece.char_start : piece.char_stop], source, index, piece.tokens)
    return PlannedPiece(
        document,
        token={side: (alignment.token[side][rows] + piece.shift[side]).astype(np.int32) for side in SIDES},
        char_end=(alignment.char_end[rows] - piece.char_start).astype(np.int32),
        window={side: alignment.window[side][rows].astype(np.int32) for side in SIDES},
    )


class _Shard:
    """The shard that is being filled."""

    def __init__(self) -> None:
        self.pairs = 0
        self.pieces: list[PlannedPiece] = []
        self.taken: list[int] = []

    def add(self, piece: PlannedPiece, at_most: int) -> None:
        self.pieces.append(piece)
        self.taken.append(min(len(piece), at_most))
        self.pairs += self.taken[-1]

    def plan(self) -> ShardPlan:
        def column(arrays: Iterator[Ints]) -> Ints:
            return np.concatenate([array[:n] for array, n in zip(arrays, self.taken, strict=True)])

        pairs = PairTable(
            document=np.repeat(np.arange(len(self.pieces), dtype=np.int32), self.taken),
            token={side: column(p.token[side] for p in self.pieces) for side in SIDES},
            char_end=column(p.char_end for p in self.pieces),
            window={side: column(p.window[side] for p in self.pieces) for side in SIDES},
        )
        return ShardPlan([p.document for p in self.pieces], pairs)


def _end_of_texts(work: Work, cursor: Cursor, shard: _Shard, counts: Counts) -> Cursor:
    cursor.counts, cursor.finished, cursor.ran_out = counts.data, True, True
    if shard.pairs:
        _close(work, cursor, shard)
    elif cursor.shards:
        write_json(_cursor_path(work, len(cursor.shards) - 1), asdict(cursor))
    else:
        raise InputError(
            f"no pair of tokens was found in {counts.data['documents']} documents: "
            "check the texts, or keep pairs inside words too with --pair-at tokens"
        )
    return cursor


def _close(work: Work, cursor: Cursor, shard: _Shard) -> None:
    number = len(cursor.shards)
    cursor.shards.append(shard.pairs)
    for piece, taken in zip(shard.pieces, shard.taken, strict=True):
        label = cursor.labels[piece.document.source]
        cursor.pairs_by_source[label] = cursor.pairs_by_source.get(label, 0) + taken
    # The cursor first: with the plan file but without it, the shard would have to be planned again.
    write_json(_cursor_path(work, number), asdict(cursor))
    name = plan_name(number)
    temporary = work.temporary(name)
    write_plan(temporary, shard.plan())
    work.commit(temporary, name)


def _resume(work: Work) -> Cursor:
    """The cursor after the last shard that is planned."""
    cursor = Cursor()
    while work.has(plan_name(len(cursor.shards))):
        path = _cursor_path(work, len(cursor.shards))
        try:
            cursor = Cursor(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DamagedError(
                f"{path}: cannot be read ({error}); drop the unfinished work with `modeldiff workspace clean`"
            ) from None
    return cursor


def _cursor_path(work: Work, shard: int) -> Any:
    return work.resume / f"plan-{shard:05d}.json"
