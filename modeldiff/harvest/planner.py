"""Planning: read, tokenize and align documents, and write the plan file of each shard. No model is in memory.

Before that, a look at the first documents tells how many pairs the texts will give, and how much disk they take.

A shard is closed at the first piece of text with which it has its pairs, so no piece is split. After each shard a small
file says how far the texts were read; an interrupted plan reads up to there without tokenizing and goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeldiff.console import progress, say
from modeldiff.errors import InputError, ModeldiffError
from modeldiff.harvest.pieces import Cut, CutElsewhere, Cutter, Piece
from modeldiff.harvest.report import Counts
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.lm.ref import ModelRef
from modeldiff.processes import in_processes
from modeldiff.records import from_json
from modeldiff.sides import SIDES
from modeldiff.texts.readers import COMPRESSED
from modeldiff.texts.sources import LeftOut, Record, Source, mix
from modeldiff.texts.tokenize import Reader
from modeldiff.threads import available_cores, prefetched
from modeldiff.workspace.activations import plan_name
from modeldiff.workspace.bits import bytes_per_value
from modeldiff.workspace.files import read_json
from modeldiff.workspace.kept import is_sound, keep_json
from modeldiff.workspace.plan import PairTable, ShardPlan, write_plan
from modeldiff.workspace.stage import Work

# Enough for a share of kept tokens within a few percent, in well under a second.
_LOOK_DOCUMENTS = 64
# So many records are looked through for them.
_LOOK_RECORDS = 10_000
# Another process takes some seconds to start, in which one plans some hundred thousand pairs; on two cores the second
# is for reading and writing. This one reads and writes for about so many.
_PAIRS_A_PROCESS, _MOST_PROCESSES = 500_000, 16
_FEWEST_CORES = 3
# What such a process is given at once: some tenths of a second.
_GROUP_CHARS, _GROUP_RECORDS = 200_000, 500
# For the uncertainty of the look, HDF5's own structures and the last chunk of each file.
_MARGIN = 1.05
_BYTES_PER_TOKEN, _BYTES_PER_PAIR, _BYTES_PER_DOCUMENT = 12, 24, 40  # see workspace/plan.py


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
    ref: dict[str, ModelRef] | None = None
    """By side, whose tokenizers the readers have; None: other processes cannot open them."""

    @property
    def cutter(self) -> Cutter:
        return Cutter(self.readers, self.context, self.settings.align, self.settings.pair_at)

    def look(self) -> Look:
        """Tokenize and align the first documents. Raises InputError when a text cannot be used, or there are none."""
        counts = Counts()
        pairs = plan_bytes = text_bytes = 0
        for record in itertools.islice(self._records(), _LOOK_RECORDS):
            if counts.data["documents"] == _LOOK_DOCUMENTS:
                break
            text_bytes += len(record.text.encode("utf-8", "surrogatepass"))
            cut = self.cutter.cut(record)
            self._count(counts, record, cut)
            for document, found in cut.pieces:
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

    def plan(self, work: Work, likely: int) -> Cursor:
        """Write the plan files that are missing; the texts are likely to give so many pairs. Raises InputError: a text
        cannot be used, or no pair is found; MachineError: a process was lost."""
        cursor = _resume(work)
        if cursor.finished:
            return cursor
        counts = Counts(cursor.counts)
        shard: list[Piece] = []
        pairs_asked, shard_pairs = self.settings.pairs, self.settings.shard_pairs
        left, wanted = pairs_asked - cursor.pairs, shard_pairs
        unplanned = self._unplanned(cursor, counts, min(likely, pairs_asked) - cursor.pairs)
        with progress("plan", pairs_asked, "pairs", done=cursor.pairs) as bar, closing(unplanned):
            for (document, found), position in unplanned:
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

    def _unplanned(
        self, cursor: Cursor, counts: Counts, pairs: int
    ) -> Generator[tuple[Piece, tuple[int, int]], None, None]:
        """The pieces after the cursor, each with the `records` and `pieces` of a cursor behind it; about so many pairs
        are still to come."""
        records, skipped = itertools.islice(self._records(), cursor.records, None), cursor.pieces
        with closing(self._cuts(records, pairs)) as cuts:
            for number, (record, cut) in enumerate(cuts, cursor.records):
                if isinstance(cut, ModeldiffError):
                    raise cut
                if record.source not in cursor.labels:
                    cursor.labels.append(record.source)
                if not skipped:  # a record of which a part is planned was counted then
                    self._count(counts, record, cut)
                for done, (document, found) in enumerate(cut.pieces[skipped:], skipped + 1):
                    document.source, document.index = cursor.labels.index(record.source), number
                    yield (document, found), (number, done) if done < len(cut.pieces) else (number + 1, 0)
                skipped = 0

    def _cuts(
        self, records: Iterator[Record], pairs: int
    ) -> Generator[tuple[Record, Cut | ModeldiffError], None, None]:
        """What becomes of each record, in order, in as many processes as are worth it. They are given records that may
        not be needed: what is wrong with those is raised in its place."""
        processes = planning_processes(pairs)
        if self.ref is None or processes == 1:
            yield from ((record, self.cutter.cut_all([record])[0]) for record in records)
            return
        say(f"plan: tokenizing and aligning in {processes} processes")
        elsewhere = CutElsewhere(self.ref, self.context, self.settings.align, self.settings.pair_at)
        failed: list[Exception] = []
        groups = _groups(records, failed)
        with in_processes(elsewhere, processes) as cut_all, closing(prefetched(cut_all, groups, processes)) as made:
            for group, cuts in made:
                yield from zip(group, cuts, strict=True)
        if failed:
            raise failed[0]

    def _records(self) -> Iterator[Record]:
        settings = self.settings
        fields = settings.text_field, settings.source_field
        return mix(self.sources, *fields, sample=settings.sample, seed=settings.seed)

    def _count(self, counts: Counts, record: Record, cut: Cut) -> None:
        if cut.problem:
            LeftOut(counts.data["left_out"], strict=self.settings.strict).add(record, cut.problem)
        else:
            counts.merge(cut.counts)


def planning_processes(pairs: int) -> int:
    """How many tokenize and align: one where cores are few, or the pairs."""
    cores = available_cores()
    return max(1, min(cores, _MOST_PROCESSES, pairs // _PAIRS_A_PROCESS)) if cores >= _FEWEST_CORES else 1


def _groups(records: Iterator[Record], failed: list[Exception]) -> Iterator[list[Record]]:
    """Records in groups that are worth sending to another process. Ends where they cannot be read, and keeps why."""
    group, chars = list[Record](), 0
    try:
        for record in records:
            group.append(record)
            chars += len(record.text)
            if chars >= _GROUP_CHARS or len(group) == _GROUP_RECORDS:
                yield group
                group, chars = [], 0
    except Exception as error:
        failed.append(error)
    yield group


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
