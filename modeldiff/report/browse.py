"""All features, as compact data for the page's table: a column for each number, and examples of those with the
strongest evidence."""

from __future__ import annotations

from typing import Any

import numpy as np

from modeldiff.catalogue.example import Example
from modeldiff.catalogue.table import FeatureTable
from modeldiff.report.excerpt import about, excerpt
from modeldiff.report.settings import ReportSettings

_NUMBERS = {"density": "density", "max_activation": "max", "relative_norm": "norm"}
_R2 = ("r2_own", "r2_other", "r2_null")
_VERDICTS = ("", "exclusive", "undecided", "predictable", "unknown")
# Significant digits: more than a reader compares, few enough to keep the page small.
_DIGITS = 3


def browsed(table: FeatureTable, listed: list[int], settings: ReportSettings) -> dict[str, Any]:
    """The table's data.

    Args:
        listed: features of differences, which have their examples in any case.

    Returns:
        sizes: features by partition, in the order of their ids; columns: by name, one value for each feature (null:
        not measured); verdicts: what the numbers in the column of that name mean; shown: by feature, its words,
        first source and examples: where it is from, then text and activation in turn (0: none; of the word that the
        example is about, with a minus).
    """
    columns: dict[str, list[Any]] = {name: _short(table.statistics[key]) for key, name in _NUMBERS.items()} | {
        name: _short(values) for name, values in table.r2.items() if name in _R2
    }
    columns["verdict"] = [_VERDICTS.index(str(one)) for one in table.verdict_F]
    columns["differ"] = _short(table.statistics["tokens_differ"])
    columns["twin"] = table.twins["feature"][:, 0].tolist()
    columns["alike"] = _short(table.twins["correlation"][:, 0])
    strongest = table.select(top=settings.evidence).ids if settings.evidence else []
    shown = {}
    for feature in dict.fromkeys([*listed, *strongest]):
        row = table.row(feature, examples=settings.examples)
        source = next(iter(row.sources.items()), None)
        shown[feature] = {
            "words": [[one.word, round(one.share, 2)] for one in row.words],
            "source": source and [source[0], round(source[1], 2)],
            "examples": [_compact(one) for one in row.examples],
        }
    sizes = {name: int((table.partition_F == name).sum()) for name in ("A", "shared", "B")}
    return {"sizes": sizes, "columns": columns, "verdicts": _VERDICTS, "shown": shown}


def _short(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(one) else float(f"{one:.{_DIGITS}g}") for one in values.tolist()]


def _compact(example: Example) -> list[Any]:
    found: list[Any] = [about(example)]
    for part in excerpt(example):
        found += [part.text, -round(part.activation, 2) if part.centre else round(part.activation, 2)]
    return found
