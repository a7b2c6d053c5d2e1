"""The tables that `modeldiff toy` prints, from the rows of summary.json; at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modeldiff.toy.cell import WITH_VERDICT

Row = Mapping[str, Any]
Columns = list[tuple[str, Literal["left", "right"]]]


@dataclass(frozen=True)
class Printed:
    """A table ready to print: title, columns, rows of text, and what the columns mean."""

    title: str
    columns: Columns
    rows: list[list[str]]
    legend: tuple[str, ...] = ()


_LEGEND = (
    "recall: share of the exclusive concepts that an exclusive feature of their",
    "model recovers, mean ± standard error over the seeds; limit: what the slots of",
    "the exclusive partitions allow. T/S/N: exclusive features of both models that",
    "recover a concept of their model alone / a shared one / none; by place: all of",
    "them; by verdict: those that the other model does not predict.",
)
_VERDICT_LEGEND = (
    "exclusive: features of both models by place; called: those of them that the",
    "other model does not predict. precision: share that recover a concept of their",
    "model alone; recall: share of these that are called. Mean ± standard error over",
    "the seeds that have any.",
)
_NONE_LEGEND = (
    "Both models have every concept: no feature should be exclusive, by place or by",
    "verdict. S/N: those that recover a shared concept / nothing.",
)


def printed_tables(rows: Sequence[Row]) -> list[Printed]:
    """Every table of a benchmark, from the `rows` of its summary.json."""
    tables = []
    sizes = [row for row in rows if row["table"] == "sizes"]
    for map_name in dict.fromkeys(row["map"] for row in sizes):
        tables += _of_map(map_name, [row for row in sizes if row["map"] == map_name])
    for name, made in (("dial", _dial), ("selection", _selection)):
        of_table = [row for row in rows if row["table"] == name]
        if of_table:
            tables.append(made(of_table))
    self_diff = [row for row in rows if row["table"] == "self-diff"]
    if self_diff:
        title = f"self-diff, {_at(self_diff)}, {_seeds(self_diff)}"
        tables.append(_nothing_exclusive(title, self_diff))
    return tables


def _of_map(name: str, rows: Sequence[Row]) -> list[Printed]:
    title = f"map {name}, stitch R² {_stitch(rows):.2f}, {_seeds(rows)}"
    if rows[0]["exclusive_ratio"] == 0:
        return [_nothing_exclusive(title, rows)]
    judged = [row for row in rows if row["architecture"] in WITH_VERDICT]
    return [_sizes(title, rows), *([_verdict(f"verdict, {title}", judged)] if judged else [])]


def _sizes(title: str, rows: Iterable[Row]) -> Printed:
    columns: Columns = [
        ("size", "right"), ("architecture", "left"), ("recall", "right"), ("limit", "right"),
        ("place\nT/S/N", "right"), ("verdict\nT/S/N", "right"), ("FVE\nA    B", "right"), ("dead", "right"),
    ]  # fmt: skip
    return Printed(
        title,
        columns,
        _once(
            [
                [
                    f"{100 * row['size']:.3g}%",
                    row["architecture"],
                    _share(row, "exclusive_recall"),
                    _share(row, "limit", error=False),
                    _split(row, "exclusive"),
                    _split(row, "verdict"),
                    _fve(row),
                    _dead(row),
                ]
                for row in rows
            ],
            1,
        ),
        _LEGEND,
    )


def _verdict(title: str, rows: Iterable[Row]) -> Printed:
    columns: Columns = [
        ("size", "right"), ("architecture", "left"), ("exclusive", "right"), ("precision\nby place", "right"),
        ("called", "right"), ("precision\nby verdict", "right"), ("recall", "right"),
    ]  # fmt: skip
    return Printed(
        title,
        columns,
        _once(
            [
                [
                    f"{100 * row['size']:.3g}%",
                    row["architecture"],
                    _count(row, "exclusive_features"),
                    _share(row, "place_precision"),
                    _count(row, "verdict_called"),
                    _share(row, "verdict_precision"),
                    _share(row, "verdict_recall"),
                ]
                for row in rows
            ],
            1,
        ),
        _VERDICT_LEGEND,
    )


def _dial(rows: list[Row]) -> Printed:
    columns: Columns = [
        ("R²", "right"), ("map", "left"), ("architecture", "left"), ("recall", "right"),
        ("place\nT/S/N", "right"), ("verdict\nT/S/N", "right"), ("FVE\nA    B", "right"),
    ]  # fmt: skip
    by_map = {name: [row for row in rows if row["map"] == name] for name in dict.fromkeys(row["map"] for row in rows)}
    stitch = {name: _stitch(of_map) for name, of_map in by_map.items()}
    return Printed(
        f"dial, {_at(rows)}, {_seeds(rows)}",
        columns,
        _once(
            [
                [
                    f"{stitch[name]:.2f}",
                    name,
                    row["architecture"],
                    _share(row, "exclusive_recall"),
                    _split(row, "exclusive"),
                    _split(row, "verdict"),
                    _fve(row),
                ]
                for name in sorted(by_map, key=lambda name: stitch[name])
                for row in by_map[name]
            ],
            2,
        ),
        ("R²: of the linear maps between the models (a real, tiny pair: 0.64 and 0.73)",),
    )


def _selection(rows: list[Row]) -> Printed:
    columns: Columns = [
        ("selection", "left"), ("combine", "left"), ("window", "right"), ("architecture", "left"), ("recall", "right"),
        ("place\nT/S/N", "right"), ("FVE\nA    B", "right"), ("dead", "right"),
    ]  # fmt: skip
    return Printed(
        f"selection, {_at(rows)}, {_seeds(rows)}",
        columns,
        _once(
            [
                [
                    row["selection"],
                    row["combine"],
                    f"{row['dead_share']:g}",
                    row["architecture"],
                    _share(row, "exclusive_recall"),
                    _split(row, "exclusive"),
                    _fve(row),
                    _dead(row),
                ]
                for row in rows
            ],
            3,
        ),
        ("window: share of the run without activity after which a feature is dead",),
    )


def _nothing_exclusive(title: str, rows: Iterable[Row]) -> Printed:
    columns: Columns = [
        ("size", "right"), ("architecture", "left"), ("by place", "right"), ("by verdict", "right"),
        ("of them S/N", "right"), ("dead there", "right"), ("FVE\nA    B", "right"),
    ]  # fmt: skip
    return Printed(
        title,
        columns,
        _once(
            [
                [
                    f"{100 * row['size']:.3g}%",
                    row["architecture"],
                    _with_error(row, "exclusive_features"),
                    _with_error(row, "verdict_called"),
                    f"{_count(row, 'verdict_shared')}/{_count(row, 'verdict_nothing')}",
                    _count(row, "exclusive_dead"),
                    _fve(row),
                ]
                for row in rows
            ],
            1,
        ),
        _NONE_LEGEND,
    )


def _once(rows: list[list[str]], leading: int) -> list[list[str]]:
    """Rows without the leading cells that repeat the row above."""
    said: list[str] = []
    shown = []
    for row in rows:
        begins = row[:leading]
        shown.append([*([""] * leading if begins == said else begins), *row[leading:]])
        said = begins
    return shown


def _mean(row: Row, name: str) -> float | None:
    found = row["figures"].get(name)
    return None if found is None else found["mean"]


def _stitch(rows: Iterable[Row]) -> float:
    """Mean over the rows of a map: it is a property of the world, not of the dictionary."""
    found = [value for row in rows if (value := _mean(row, "stitch")) is not None]
    return sum(found) / len(found)


def _seeds(rows: Iterable[Row]) -> str:
    most = max(row["figures"]["fve"]["n"] for row in rows)
    return f"{most} seed{'s' * (most > 1)}"


def _at(rows: Sequence[Row]) -> str:
    return f"{rows[0]['features']} features for {rows[0]['concepts']} concepts"


def _share(row: Row, name: str, *, error: bool = True) -> str:
    found = row["figures"].get(name)
    if found is None:
        return "-"
    return _fraction(found["mean"]) + ("" if found["se"] is None or not error else f"±{_fraction(found['se'])}")


def _fve(row: Row) -> str:
    """Of both sides; not of stitch-residual, whose FVE is that of something else."""
    if row["architecture"] == "stitch-residual":
        return "-"
    return " ".join(_fraction(_mean(row, name) or 0.0, digits=3) for name in ("fve_a", "fve_b"))


def _fraction(value: float, digits: int = 2) -> str:
    """0.42 as .42, to save columns."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _count(row: Row, name: str) -> str:
    value = _mean(row, name)
    return "-" if value is None else _number(value)


def _with_error(row: Row, name: str) -> str:
    found = row["figures"].get(name)
    if found is None:
        return "-"
    return _number(found["mean"]) + ("" if found["se"] is None else f"±{_number(found['se'])}")


def _split(row: Row, part: str) -> str:
    counts = [_count(row, f"{part}_{kind}") for kind in ("true", "shared", "nothing")]
    return "-" if "-" in counts else "/".join(counts)


def _dead(row: Row) -> str:
    """Dead features of all partitions."""
    found = [value for part in ("A", "shared", "B") if (value := _mean(row, f"dead_{part}")) is not None]
    return _number(sum(found)) if found else "-"
