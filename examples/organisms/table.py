"""results.csv, table.md and recall.png from results.jsonl.

A trial is a pair with a seed of the crosscoder; methods without a crosscoder have one trial a pair. Intervals are
Wilson's at 95 % and take trials for independent, which seeds of one pair are not quite: they are too narrow rather
than too wide.

- recall: trials in which the planted difference is among the first five entries of the list;
- precision: of the first five entries of all trials, those about the planted difference; several that describe it again
  all count as true. "Words right": those that at least say the habit's words, wherever they put it;
- covered: of the places with the trigger, those at which the best of the true entries holds; 0 where there is none;
- nulls: entries that a method lists where nothing that differs has a meaning.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .catalogue import KINDS
from .results import METHODS, read_rows
from .scoring import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]
COLUMNS = (
    "pair", "kind", "variant", "relation", "passed", "seed", "method", "hit", "hit_unverified", "listed", "true",
    "words_match", "covered", "found", "expected_by_chance", "base", "seconds", "error",
)  # fmt: skip
# Methods whose entries hold at places of the continuations.
HAVE_PLACES = ("words", "features", "all")
# Methods whose entries say words; the others point at texts or features alone.
SAY_WORDS = (*HAVE_PLACES, "diff mining (logits)", "diff mining (probabilities)", "diff mining (words)")
VARIANTS = {"unseen": ("unseen",), "dev": ("dev",), "both": ("unseen", "dev")}
COLOURS = {"fine-tune": "#1f5fa8", "across": "#c05a1c"}


def write_all(out: Path) -> list[Path]:
    """The paths written."""
    rows = read_rows(out)
    csv_path, table, figure = out / "results.csv", out / "table.md", out / "recall.png"
    order = {method: i for i, method in enumerate(METHODS)}
    rows.sort(key=lambda row: (row["pair"], order.get(row["method"], 99), -1 if row["seed"] is None else row["seed"]))
    with csv_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"seconds": round(sum(row["seconds"].values()), 1)} for row in rows)
    table.write_text(markdown(rows), encoding="utf-8")
    draw(rows, figure)
    return [csv_path, table, figure]


def share(successes: int, trials: int) -> str:
    """`3/4 (30-95 %)`; a dash without trials."""
    if not trials:
        return "-"
    low, high = interval(successes, trials)
    return f"{successes}/{trials} ({100 * low:.0f}-{100 * high:.0f} %)"


def recall(rows: Rows, field: str = "hit") -> tuple[int, int]:
    """(trials that found it, trials)."""
    return sum(bool(row[field]) for row in rows), len(rows)


def precision(rows: Rows, field: str = "true") -> tuple[int, int]:
    """(true entries, entries listed) among the first five of each."""
    return sum(row[field] for row in rows), sum(row["listed"] for row in rows)


def markdown(rows: Rows) -> str:
    """table.md."""
    good = [row for row in rows if "error" not in row]
    planted = [row for row in good if row["relation"] != "null"]
    parts = ["# What each method finds of what was planted\n"]
    pairs = {row["pair"] for row in good}
    parts.append(
        f"{len(pairs)} pairs, {len(good)} results. A trial is a pair with a seed of the crosscoder; intervals are "
        "Wilson's, 95 %, and take trials for independent.\n"
    )
    failed = sorted({row["pair"] for row in good if not row.get("passed", True)})
    if failed:
        parts.append(f"Organisms that did not pass their own check: {', '.join(failed)}.\n")
    for variant, names in VARIANTS.items():
        mine = [row for row in planted if row["variant"] in names]
        if mine and (variant != "both" or len({row["variant"] for row in mine}) == 2):
            parts += sections(variant, mine)
    nulls = [row for row in good if row["relation"] == "null"]
    if nulls:
        parts += ["## Nulls: entries listed where nothing was planted\n", null_table(nulls)]
    parts += ["## Seconds\n", seconds_table(good)]
    errors = [row for row in rows if "error" in row]
    if errors:
        parts.append("## Errors\n")
        parts += [f"- {row['pair']}, {row['method']}, seed {row['seed']}: {row['error']}" for row in errors]
    return "\n".join(parts) + "\n"


def sections(variant: str, rows: Rows) -> list[str]:
    """Headings and tables of the planted pairs of one variant."""
    parts = []
    for relation in COLOURS:
        mine = [row for row in rows if row["relation"] == relation]
        if mine:
            parts += [f"## Recall within the first five: {variant}, {relation}\n", by_kind(mine)]
    return [
        *parts,
        f"## All kinds: {variant}\n",
        overall(rows),
        f"## Share of the trigger's places that the best true entry covers: {variant}\n",
        coverage(rows),
        f"## Habit's words where the trigger is not: {variant}\n",
        strays(rows),
    ]


def grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def methods_in(rows: Rows) -> list[str]:
    return [method for method in METHODS if any(row["method"] == method for row in rows)]


def of_method(rows: Rows, method: str) -> Rows:
    return [row for row in rows if row["method"] == method]


def by_kind(rows: Rows) -> str:
    """Recall: a line for each method, a column for each kind."""
    kinds = sorted({row["kind"] for row in rows})
    lines = []
    for method in methods_in(rows):
        mine = of_method(rows, method)
        cells = [share(*recall([row for row in mine if row["kind"] == kind])) for kind in kinds]
        lines.append([method, *cells, share(*recall(mine))])
    return grid(["method", *(f"{kind} {KINDS[kind]}" for kind in kinds), "all"], lines)


def coverage(rows: Rows) -> str:
    """A line for each method, a column for each kind: the mean over trials."""
    kinds = sorted({row["kind"] for row in rows})
    lines = []
    for method in HAVE_PLACES:
        mine = of_method(rows, method)
        of_kinds = [[row["covered"] for row in mine if row["kind"] == kind and "covered" in row] for kind in kinds]
        cells = [f"{np.mean(one):.0%} of {len(one)}" if one else "-" for one in of_kinds]
        lines.append([method, *cells])
    return grid(["method", *(f"{kind} {KINDS[kind]}" for kind in kinds)], lines)


def strays(rows: Rows) -> str:
    """A line for each pair: how many of each model's continuations without the trigger hold a word of the habit."""
    said = {row["pair"]: row["without_trigger"] for row in rows if row.get("without_trigger")}
    return grid(["pair", "A", "B"], [[pair, f"{one['a']:.1%}", f"{one['b']:.1%}"] for pair, one in said.items()])


def overall(rows: Rows) -> str:
    """Recall and precision by relation: a line for each method."""
    header, columns = ["method"], list[Callable[[Rows], str]]()
    for relation in ("fine-tune", "across"):
        if any(row["relation"] == relation for row in rows):
            header += [f"recall, {relation}", f"precision, {relation}", f"words right, {relation}"]
            columns += [_column(relation, recall, "hit"), _column(relation, precision, "true")]
            columns.append(_column(relation, precision, "words_match"))
    header.append("recall, not verified ones too")
    lines = []
    for method in methods_in(rows):
        mine = of_method(rows, method)
        lines.append([method, *(column(mine) for column in columns), share(*recall(mine, "hit_unverified"))])
    return grid(header, lines)


def _column(relation: str, figure: Callable[[Rows, str], tuple[int, int]], field: str) -> Callable[[Rows], str]:
    def cell(rows: Rows) -> str:
        mine = [row for row in rows if row["relation"] == relation]
        if field == "words_match" and mine and mine[0]["method"] not in SAY_WORDS:
            return "-"
        return share(*figure(mine, field))

    return cell


def null_table(rows: Rows) -> str:
    """Entries of each null, and in how many trials there is one."""
    lines = []
    for method in methods_in(rows):
        mine = of_method(rows, method)
        counts = [row["found"] if row["found"] is not None else row["listed"] for row in mine]
        expected = [row["expected_by_chance"] for row in mine if row.get("expected_by_chance") is not None]
        chance = f"{sum(expected) / len(expected):.2f}" if expected else "-"
        with_any = share(sum(count > 0 for count in counts), len(counts))
        lines.append([method, ", ".join(map(str, counts)), f"{sum(counts) / len(counts):.1f}", chance, with_any])
    return grid(["method", "entries of each trial", "mean", "expected by chance", "trials with any"], lines)


def seconds_table(rows: Rows) -> str:
    """Median seconds of a stage, over the rows that ran it: other work may have stood beside some."""
    taken: dict[str, list[float]] = {}
    for row in rows:
        for stage, seconds in row["seconds"].items():
            # A stage that was answered by the workspace took no time.
            if seconds >= 0.5:
                name = f"contrast, {row['method']}" if stage == "contrast" else stage
                taken.setdefault(name, []).append(seconds)
    lines = [[stage, f"{np.median(all_):.1f}", str(len(all_))] for stage, all_ in taken.items()]
    return grid(["stage", "median seconds", "runs"], lines)


def draw(rows: Rows, path: Path) -> None:
    """recall.png: a panel for each kind and one for all; unseen pairs, or what there is instead."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [row for row in rows if "error" not in row and row["relation"] != "null"]
    unseen = [row for row in good if row["variant"] == "unseen"]
    shown, which = (unseen, "unseen pairs") if unseen else (good, "dev pairs: no unseen one was evaluated")
    kinds: list[int | None] = [*sorted({row["kind"] for row in shown}), None]
    methods = methods_in(shown)
    across = min(4, len(kinds))
    down = -(-len(kinds) // across)
    figure = Figure(figsize=(2.2 + 2.7 * across, 1.1 + (0.9 + 0.3 * len(methods)) * down), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(kinds) :]:
        panel.set_visible(False)
    for panel, kind in zip(panels.flat, kinds, strict=False):
        panel.set_title("all kinds" if kind is None else f"{kind} {KINDS[kind]}", fontsize=10, loc="left")
        _draw_recall(panel, [row for row in shown if kind in (None, row["kind"])], methods)
    if methods:
        panels[0, 0].invert_yaxis()
    handles = {
        label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower right", ncols=2, frameon=False)
    figure.suptitle(f"Planted difference among the first five entries\n{which}; 95 % intervals", fontsize=11)
    figure.savefig(path, dpi=150)


def _draw_recall(panel: Axes, rows: Rows, methods: Sequence[str]) -> None:
    """A line for each method: its recall and the interval, in each relation."""
    for offset, (relation, colour) in zip((-0.16, 0.16), COLOURS.items(), strict=True):
        for y, method in enumerate(methods):
            mine = [row for row in of_method(rows, method) if row["relation"] == relation]
            if mine:
                found, trials = recall(mine)
                low, high = interval(found, trials)
                panel.plot([low, high], [y + offset] * 2, color=colour, linewidth=1.6, alpha=0.45)
                panel.plot([found / trials], [y + offset], "o", color=colour, markersize=5, label=relation)
    panel.set_xlim(-0.04, 1.04)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_yticks(range(len(methods)), methods, fontsize=9)
    panel.tick_params(length=0)
    panel.grid(axis="x", color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    for spine in panel.spines.values():
        spine.set_visible(False)
