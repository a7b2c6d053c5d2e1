"""How much disk a harvest takes, and how many pairs the texts will give, from a look at the first documents."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldiff.errors import InputError
from modeldiff.harvest.planner import plan_record
from modeldiff.harvest.report import Counts
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.texts.readers import COMPRESSED
from modeldiff.texts.sources import Source, mix
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.bits import bytes_per_value

# Enough for a share of kept tokens within a few percent, in well under a second.
_LOOK_DOCUMENTS = 64
# For the uncertainty of the look, HDF5's own structures and the last chunk of each file.
_MARGIN = 1.05
_BYTES_PER_TOKEN, _BYTES_PER_PAIR, _BYTES_PER_DOCUMENT = 12, 24, 40  # see workspace/plan.py


@dataclass(frozen=True)
class Look:
    """What the first documents say about the rest."""

    pairs_in_texts: int | None
    """Estimate for all the texts; None where the size of a source does not tell how much text it holds."""
    plan_bytes_per_pair: float
    shares: dict[str, Any]
    """Shares kept, see report.Counts.shares."""


def look(settings: HarvestSettings, sources: list[Source], readers: dict[str, Reader], context: dict[str, int]) -> Look:
    """Tokenize and align the first documents.

    Raises:
        InputError: a text cannot be used, or no pair was found.
    """
    counts = Counts()
    pairs = plan_bytes = text_bytes = 0
    stream = mix(sources, settings.text_field, sample=settings.sample, seed=settings.seed)
    for record in itertools.islice(stream, _LOOK_DOCUMENTS):
        text_bytes += len(record.text.encode("utf-8", "surrogatepass"))
        for document, found in plan_record(record, readers, settings, context, counts):
            pairs += len(found)
            tokens = sum(len(one.ids) for one in document.tokens.values())
            text = len(document.text.encode("utf-8", "surrogatepass"))
            plan_bytes += text + tokens * _BYTES_PER_TOKEN + len(found) * _BYTES_PER_PAIR + _BYTES_PER_DOCUMENT
    if not text_bytes:
        raise InputError("--sample left no document: choose a larger share")
    in_texts = None
    if not any(source.hub or Path(source.location).suffix.lower() in COMPRESSED for source in sources):
        size = sum(Path(source.location).stat().st_size for source in sources)
        in_texts = int(pairs * size * settings.sample / max(text_bytes, 1))
    return Look(in_texts, plan_bytes / max(pairs, 1), counts.shares())


def bytes_needed(pairs: int, widths: dict[str, int], encoding: str, plan_bytes_per_pair: float) -> int:
    """Bytes on disk of a store with so many pairs: rows of both sides, the plan, and 5 %."""
    rows = sum(widths.values()) * bytes_per_value(encoding)
    return int(pairs * (rows + plan_bytes_per_pair) * _MARGIN)


def expected_pairs(settings: HarvestSettings, seen: Look) -> int:
    """The pairs asked for, or what the texts are likely to give if that is clearly less."""
    if seen.pairs_in_texts is None:
        return settings.pairs
    return min(settings.pairs, 2 * seen.pairs_in_texts)  # JSON fields and uneven texts make the estimate rough
