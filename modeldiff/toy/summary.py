"""From the results of cells to figures: a flat row per cell, and mean and standard error over the seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from modeldiff.toy.cells import Planned
from modeldiff.toy.settings import TABLES

_TRAIN_FIELDS = ("selection", "combine", "dead_share")
ROW_FIELDS = ("table", "map", "exclusive_ratio", "size", "architecture", *_TRAIN_FIELDS)
"""What the rows of a table differ in."""


@dataclass(frozen=True)
class Record:
    """A distinct cell with its result, as in cells.json."""

    tables: tuple[str, ...]
    size: float
    """Size of the dictionary, as a share of the concepts."""
    spec: dict[str, Any]
    """The `CellSpec` as JSON data."""
    result: dict[str, Any]
    """What `run_cell` returned."""


def records(cells: Mapping[str, Sequence[Planned]], results: Mapping[str, dict[str, Any]]) -> list[Record]:
    found = []
    for key, planned in cells.items():
        tables = tuple(dict.fromkeys(one.table for one in planned))
        found.append(Record(tables, planned[0].size, dataclasses.asdict(planned[0].cell), results[key]))
    return found


def exclusive_recall(result: Mapping[str, Any], kind: str = "right") -> float | None:
    """Share of the exclusive concepts of both models (equally many) that are recovered, by a feature of the model's own
    class ("right") or by "any"; None where there are none."""
    found = [value for side in ("A", "B") if (value := result["recall"][kind][side]) is not None]
    return fmean(found) if found else None


def figures(result: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Every number of a result by a flat name ("recall_any_shared"), and those of both models together."""
    pooled: dict[str, float | int | None] = {
        "exclusive_recall": exclusive_recall(result),
        "exclusive_recall_any": exclusive_recall(result, "any"),
        "fve": fmean(result["fve"].values()),
        "stitch": fmean(result["stitch"].values()),
    }
    for part in ("exclusive", "verdict"):
        for name in result[part]["A"]:
            pooled[f"{part}_{name}"] = sum(result[part][side][name] for side in ("A", "B"))
    return pooled | dict(_flat(result))


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}_")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


def cells_csv(cells: Iterable[Record]) -> bytes:
    """One row per distinct cell: its tables and size, every field of its specification, every figure."""
    rows = []
    for record in cells:
        spec = dict(record.spec)
        parts = spec.pop("world") | spec.pop("train") | spec
        rows.append({"tables": " ".join(record.tables), "size": record.size} | parts | figures(record.result))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def mean_and_error(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard error (None for one value) and n."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": fmean(values), "se": error, "n": len(values)}


def summary(cells: Iterable[Record]) -> list[dict[str, Any]]:
    """Mean, standard error and number of seeds of every figure, for every row of every table: ROW_FIELDS, `features`,
    `concepts`, and `figures` by name, without those that no seed has. `fve_over_standard` is the FVE minus that of the
    standard crosscoder on the same world: without the differences between worlds."""
    cells = list(cells)
    fve = {_key(record.spec): fmean(record.result["fve"].values()) for record in cells}
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in cells:
        world, train = record.spec["world"], record.spec["train"]
        of_train = [train[name] for name in _TRAIN_FIELDS]
        for table in record.tables:
            key = (table, world["map"], world["exclusive_ratio"], record.size, record.spec["architecture"], *of_train)
            groups[key].append(record)
    return [
        {
            **dict(zip(ROW_FIELDS, key, strict=True)),
            "features": group[0].spec["train"]["features"],
            "concepts": group[0].spec["world"]["concepts"],
            "figures": _over_seeds([figures(record.result) | _over_standard(record, fve) for record in group]),
        }
        for key, group in sorted(groups.items(), key=lambda item: TABLES.index(item[0][0]))
    ]


def _key(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True)


def _over_standard(record: Record, fve: Mapping[str, float]) -> dict[str, float]:
    standard = fve.get(_key({**record.spec, "architecture": "standard"}))
    return {} if standard is None else {"fve_over_standard": fve[_key(record.spec)] - standard}


def _over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for one in seeds for name in one)
    found = {name: [one[name] for one in seeds if one.get(name) is not None] for name in names}
    return {name: mean_and_error(values) for name, values in found.items() if values}
