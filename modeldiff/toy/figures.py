"""The pictures of a benchmark, in the manner of the paper's figures 4 and 15, and those the paper does not have.

The same cells give the same bytes. An architecture has one colour in all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from modeldiff.figures import new_figure, png
from modeldiff.toy.summary import Record, exclusive_recall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

# Colour-blind safe (Okabe and Ito).
COLOURS = {
    "standard": "#000000",
    "dsf-vectors": "#CC79A7",
    "dsf-norms": "#E69F00",
    "dfc": "#0072B2",
    "dfc-audited": "#D55E00",
    "stitch-residual": "#009E73",
}
_GREY = "#888888"
_SIZE = "dictionary size (% of the concepts)"
# Held-out R² of the linear maps between two small language models that were trained apart, one way and the other.
_REAL_PAIR = (0.64, 0.73)


def figures_of(cells: Sequence[Record], rows: Sequence[Row]) -> dict[str, Callable[[], bytes]]:
    """By name, what draws each picture that the cells and the `summary` of them allow, as PNG."""
    drawn: dict[str, Callable[[], bytes]] = {}
    rows = [row for row in rows if "exclusive_recall" in row["figures"]]
    sizes, dial = ([row for row in rows if row["table"] == table] for table in ("sizes", "dial"))
    if sizes:
        drawn["sizes"] = partial(sizes_figure, sizes)
        whole = min({row["size"] for row in sizes}, key=lambda size: abs(size - 1))
        of_size = [one for one in cells if "sizes" in one.tables and one.size == whole]
        drawn["training"] = partial(training_figure, of_size)
    if dial:
        drawn["dial"] = partial(dial_figure, dial)
    return drawn


def sizes_figure(rows: Sequence[Row]) -> bytes:
    """Against dictionary size, one row of panels for each map: recall, false positives, FVE (the paper's figure 4)."""
    maps, architectures = (list(dict.fromkeys(row[name] for row in rows)) for name in ("map", "architecture"))
    # The differences between architectures are small against those between sizes.
    differences = any("fve_over_standard" in row["figures"] for row in rows)
    fve_name = "fve_over_standard" if differences else "fve"
    figure = new_figure(15, 1.0 + 3.4 * len(maps))
    panels = figure.subplots(len(maps), 3, squeeze=False, width_ratios=(1, 1.35, 1))
    for (recall, wrong, fve), map_name in zip(panels, maps, strict=True):
        of_map = [row for row in rows if row["map"] == map_name]
        for name in architectures:
            of_one = [row for row in of_map if row["architecture"] == name]
            _line(recall, of_one, "exclusive_recall", name, x=lambda row: 100 * row["size"])
            if name != "stitch-residual":  # its FVE is that of the residuals
                _line(fve, of_one, fve_name, name, x=lambda row: 100 * row["size"])
        _limits(recall, of_map)
        _false_positives(wrong, of_map, architectures)
        stitch = fmean(_stitch_of(row) for row in of_map)
        title = f"map {map_name}, stitch R² {stitch:.2f}"
        _label(recall, _SIZE, "exclusive concepts recovered", title, ylim=(-0.03, 1.03))
        difference = "FVE minus that of standard" if differences else "FVE"
        _label(fve, _SIZE, difference, "fraction of variance explained")
    return _png(figure, panels[0][0])


def _limits(axes: Axes, rows: Sequence[Row]) -> None:
    """What the slots allow: the same for all architectures with partitions, everything for those without."""
    sizes = sorted({row["size"] for row in rows})
    limits = [min(row["figures"]["limit"]["mean"] for row in rows if row["size"] == size) for size in sizes]
    if min(limits) < 1:
        label = "limit of the exclusive slots"
        axes.plot([100 * size for size in sizes], limits, color=_GREY, linestyle="--", linewidth=1, label=label)


def _false_positives(axes: Axes, rows: Sequence[Row], architectures: Sequence[str]) -> None:
    """Bars per size and architecture: shares of the exclusive features that recover what they should not."""
    sizes = sorted({row["size"] for row in rows})
    width = 0.84 / len(architectures)
    for place, name in enumerate(architectures):
        of_one = [row for row in rows if row["architecture"] == name]
        at = [sizes.index(row["size"]) + (place - (len(architectures) - 1) / 2) * width for row in of_one]
        means = [{figure: found["mean"] for figure, found in row["figures"].items()} for row in of_one]
        shared, nothing = (
            [100 * mean[f"exclusive_{what}"] / max(mean["exclusive_features"], 1e-9) for mean in means]
            for what in ("shared", "nothing")
        )
        axes.bar(at, shared, width, color=COLOURS[name])
        axes.bar(at, nothing, width, bottom=shared, color=COLOURS[name], alpha=0.35)
    axes.bar([0], [0], color=_GREY, label="recovers a shared concept")
    axes.bar([0], [0], color=_GREY, alpha=0.35, label="recovers nothing")
    axes.set_xticks(range(len(sizes)), [f"{100 * size:.3g}" for size in sizes])
    _label(axes, _SIZE, "% of the exclusive features", "false positives", ylim=(0, 115))
    axes.grid(visible=False, axis="x")
    axes.set_yticks(range(0, 101, 20))
    axes.legend(fontsize="small", ncols=2, loc="upper right")
    axes.set_axisbelow(True)


def training_figure(cells: Sequence[Record]) -> bytes:
    """Recall over the pairs seen (the paper's figure 15), one row of panels for each map: recovered by any feature, and
    by one of the right class; shared concepts solid, exclusive ones dashed."""
    recalls: dict[tuple[str, str, str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for snapshot in cell.result["curve"]:
            for kind in ("any", "right"):
                exclusive = exclusive_recall({"recall": snapshot}, kind)
                for name, recall in (("shared", snapshot[kind]["shared"]), ("exclusive", exclusive)):
                    if recall is not None:
                        key = (cell.spec["world"]["map"], cell.spec["architecture"], kind, name)
                        recalls[key][snapshot["pairs"] / 1e6].append(recall)
    maps = list(dict.fromkeys(key[0] for key in recalls))
    figure = new_figure(12, 1.2 + 3.6 * len(maps))
    spec = cells[0].spec
    figure.suptitle(f"{spec['train']['features']} features for {spec['world']['concepts']} concepts")
    panels = figure.subplots(len(maps), 2, squeeze=False, sharey=True)
    kinds = {"any": "recovered by any feature", "right": "recovered by a feature of the right class"}
    for row, map_name in zip(panels, maps, strict=True):
        for axes, (kind, words) in zip(row, kinds.items(), strict=True):
            for (of_map, architecture, of_kind, of_class), by_pairs in recalls.items():
                if (of_map, of_kind) == (map_name, kind):
                    points = sorted((pairs, fmean(found)) for pairs, found in by_pairs.items())
                    style, label = ("-", None) if of_class == "shared" else ("--", architecture)
                    colour = COLOURS[architecture]
                    axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=2.5, label=label)
            ylabel = "share of the concepts" if kind == "any" else ""
            _label(axes, "pairs seen (millions)", ylabel, f"map {map_name}: {words}", ylim=(-0.03, 1.03))
            axes.set_xlim(left=0)
    panels[0][0].plot([], [], color=_GREY, linestyle="-", label="shared concepts")
    panels[0][0].plot([], [], color=_GREY, linestyle="--", label="exclusive concepts")
    return _png(figure, panels[0][0])


def dial_figure(rows: Sequence[Row]) -> bytes:
    """Exclusive recall and false positives against how well a linear map stitches the two models."""
    figure = new_figure(15, 4.8)
    panels = figure.subplots(1, 3)
    names = {
        "exclusive_recall": "exclusive concepts recovered",
        "exclusive_shared": "exclusive features that recover a shared concept",
        "exclusive_nothing": "exclusive features that recover nothing",
    }
    figure.suptitle(f"{rows[0]['features']} features for {rows[0]['concepts']} concepts")
    for name in dict.fromkeys(row["architecture"] for row in rows):
        of_one = sorted((row for row in rows if row["architecture"] == name), key=_stitch_of)
        for axes, figure_name in zip(panels, names, strict=True):
            _line(axes, of_one, figure_name, name, x=_stitch_of)
    for axes, words in zip(panels, names.values(), strict=True):
        axes.axvspan(*_REAL_PAIR, color=_GREY, alpha=0.25, label="real pairs (two tiny language models)")
        _label(axes, "stitch R² (linear maps between the models, mean of both)", words)
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    panels[0].set_ylim(-0.03, 1.03)
    return _png(figure, panels[0])


def _label(axes: Axes, xlabel: str, ylabel: str, title: str = "", **settings: Any) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set(xlabel=xlabel, ylabel=ylabel, **settings)
    axes.grid(alpha=0.3)


def _stitch_of(row: Row) -> float:
    return float(row["figures"]["stitch"]["mean"])


def _line(axes: Axes, rows: Iterable[Row], name: str, architecture: str, x: Callable[[Row], float]) -> None:
    points = [(x(row), row["figures"][name]) for row in rows if name in row["figures"]]
    if points:
        at, mean, error = zip(*((x, found["mean"], found["se"] or 0.0) for x, found in points), strict=True)
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "capsize": 2, "linewidth": 1.5}
        axes.errorbar(at, mean, error, color=COLOURS[architecture], label=architecture, **style)


def _png(figure: Figure, axes: Axes) -> bytes:
    """With one legend for all panels, that of `axes`, below them; the architectures first."""
    entries = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(entries, key=lambda entry: entry[1] not in COLOURS), strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), fontsize="small")
    return png(figure)
