"""The tables that `modeldiff toy` prints, from the rows of summary.json; at most 80 columns wide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modeldiff.format import NONE, Columns, fixed

Row = Mapping[str, Any]
Column = tuple[str, Literal["left", "right"], Callable[[Row], str]]


@dataclass(frozen=True)
class Printed:
    """A table ready to print: title, columns, rows of text, and what the columns mean."""

    title: str
    columns: Columns
    rows: list[list[str]]
    legend: tuple[str, ...]


_LEGEND = (
    "recall: share of the exclusive concepts that an exclusive feature of their",
    "model recovers, mean ± standard error over the seeds; limit: what the slots of",
    "the exclusive partitions allow. T/S/N: exclusive features of both models that",
    "recover a concept of their model alone / a shared one / none; by place: all of",
    "them; by verdict: those that the other model does not predict.",
)
_NONE_LEGEND = (
    "Both models have every concept: no feature should be exclusive, by place or by",
    "verdict. S/N: those that recover a shared concept / nothing.",
)
_DIAL_LEGEND = ("R²: of the linear maps between the models (a real, tiny pair: 0.64 and 0.73)",)
_SELECTION_LEGEND = ("window: share of the run without activity after which a feature is dead",)


def printed_tables(rows: Sequence[Row]) -> list[Printed]:
    """Every table of a benchmark, from the `rows` of its summary.json."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["table"], row["map"] if row["table"] == "sizes" else ""].append(row)
    tables = []
    for (kind, map_name), group in groups.items():
        title = f"{kind}, {group[0]['features']} features for {group[0]['concepts']} concepts"
        if kind == "sizes":
            title = f"map {map_name}, stitch R² {_mean(group[0], 'stitch'):.2f}"
            kind = kind if group[0]["exclusive_ratio"] else "self-diff"
        elif kind == "dial":
            group.sort(key=lambda row: _mean(row, "stitch") or 0.0)
        tables.append(_printed(title, group, *_KINDS[kind]))
    return tables


def _printed(
    title: str, rows: Sequence[Row], leading: int, columns: Sequence[Column], legend: tuple[str, ...]
) -> Printed:
    """The `leading` first cells are left empty where they repeat the row above."""
    above: list[str] = []
    lines = []
    for row in rows:
        cells = [show(row) for _, _, show in columns]
        lines.append([*([""] * leading if cells[:leading] == above else cells[:leading]), *cells[leading:]])
        above = cells[:leading]
    seeds = max(row["figures"]["fve"]["n"] for row in rows)
    title = f"{title}, {seeds} seed{'s' * (seeds > 1)}"
    return Printed(title, [(name, justify) for name, justify, _ in columns], lines, legend)


def _mean(row: Row, name: str) -> float | None:
    found = row["figures"].get(name)
    return None if found is None else found["mean"]


def _share(name: str, *, error: bool = True) -> Callable[[Row], str]:
    """A share with its standard error, as .42±.03 to save columns."""

    def show(row: Row) -> str:
        found = row["figures"].get(name)
        if found is None:
            return NONE
        return _short(found["mean"]) + ("" if found["se"] is None or not error else f"±{_short(found['se'])}")

    return show


def _short(value: float, digits: int = 2) -> str:
    """0.42 as .42."""
    text = fixed(value, digits)
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")


def _fve(row: Row) -> str:
    """Both sides'; not that of stitch-residual, whose FVE is that of something else."""
    if row["architecture"] == "stitch-residual":
        return NONE
    return " ".join(_short(_mean(row, name) or 0.0, 3) for name in ("fve_a", "fve_b"))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def _counts(*names: str, error: bool = False) -> Callable[[Row], str]:
    """Mean numbers of features, T/S/N; with its standard error if wanted."""

    def one(found: Mapping[str, Any]) -> str:
        return _number(found["mean"]) + (f"±{_number(found['se'])}" if error and found["se"] is not None else "")

    def show(row: Row) -> str:
        figures = row["figures"]
        return "/".join(one(figures[name]) for name in names) if all(name in figures for name in names) else NONE

    return show


def _dead(row: Row) -> str:
    found = [value for part in ("A", "shared", "B") if (value := _mean(row, f"dead_{part}")) is not None]
    return _number(sum(found)) if found else NONE


_SIZE: Column = ("size", "right", lambda row: f"{100 * row['size']:.3g}%")
_ARCHITECTURE: Column = ("architecture", "left", lambda row: row["architecture"])
_RECALL: Column = ("recall", "right", _share("exclusive_recall"))
_LIMIT: Column = ("limit", "right", _share("limit", error=False))
_PLACE: Column = ("place\nT/S/N", "right", _counts("exclusive_true", "exclusive_shared", "exclusive_nothing"))
_VERDICT: Column = ("verdict\nT/S/N", "right", _counts("verdict_true", "verdict_shared", "verdict_nothing"))
_FVE: Column = ("FVE\nA    B", "right", _fve)
_DEAD: Column = ("dead", "right", _dead)
_SIZES = (_SIZE, _ARCHITECTURE, _RECALL, _LIMIT, _PLACE, _VERDICT, _FVE, _DEAD)
_R2: Column = ("R²", "right", lambda row: fixed(_mean(row, "stitch")))
_MAP: Column = ("map", "left", lambda row: row["map"])
_DIAL = (_R2, _MAP, _ARCHITECTURE, _RECALL, _PLACE, _VERDICT, _FVE)
_SELECTED: Column = ("selection", "left", lambda row: row["selection"])
_COMBINED: Column = ("combine", "left", lambda row: row["combine"])
_WINDOW: Column = ("window", "right", lambda row: f"{row['dead_share']:g}")
_SELECTION = (_SELECTED, _COMBINED, _WINDOW, _ARCHITECTURE, _RECALL, _PLACE, _FVE, _DEAD)
_BY_PLACE: Column = ("by place", "right", _counts("exclusive_features", error=True))
_BY_VERDICT: Column = ("by verdict", "right", _counts("verdict_called", error=True))
_FALSE: Column = ("of them S/N", "right", _counts("verdict_shared", "verdict_nothing"))
_DEAD_THERE: Column = ("dead there", "right", _counts("exclusive_dead"))
_NOTHING_EXCLUSIVE = (_SIZE, _ARCHITECTURE, _BY_PLACE, _BY_VERDICT, _FALSE, _DEAD_THERE, _FVE)
# By table: how many of the first columns say what a row is, all columns, what they mean.
_KINDS: dict[str, tuple[int, Sequence[Column], tuple[str, ...]]] = {
    "sizes": (1, _SIZES, _LEGEND),
    "dial": (2, _DIAL, _DIAL_LEGEND),
    "selection": (3, _SELECTION, _SELECTION_LEGEND),
    "self-diff": (1, _NOTHING_EXCLUSIVE, _NONE_LEGEND),
}
