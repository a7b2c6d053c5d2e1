"""The picture of a sweep: what the push does and what it costs, against its strength."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from modeldiff.steer.summary import COHERENT_RATIO, COHERENT_REPETITION, FEATURE, RANDOM, pooled, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
# Colour-blind safe (Okabe and Ito), as in the picture of a training run.
_COLOURS = {"A": "#D55E00", "B": "#009E73"}
_GREY = "#777777"


def dose_figure(rows: Sequence[Row], records: Sequence[Row], labels: dict[str, str], title: str) -> bytes:
    """PNG: KL, perplexity and repetition over the strength; solid the feature, dashed random directions.

    Hollow points are strengths at which the model is not coherent any more.
    The same rows give the same bytes.

    Args:
        rows: `dose_rows` of the records.
        records: of all generations; the spread of several random directions is drawn as a band.
        labels: what to call each model, in the order in which they are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    effect, perplexity, repetition = figure.subplots(1, 3)
    percent = _scaled("repeated", 100)
    for axes, value in ((effect, _scaled("kl")), (perplexity, _scaled("perplexity_ratio")), (repetition, percent)):
        for model, label in labels.items():
            _lines(axes, [row for row in rows if row["model"] == model], records, model, label, value)
        axes.axvline(0, color=_GREY, linewidth=0.8, alpha=0.6, zorder=0)
        axes.set_xlabel("strength (1: the feature's maximum activation)")
        axes.grid(alpha=0.3)
    _roots(effect)
    _head(effect, "Effect: KL(steered || unsteered)", "on the unsteered text, nats per token (root scale)")
    perplexity.set_yscale("log")
    perplexity.yaxis.set_major_formatter("{x:g}x")
    _steps(perplexity)
    perplexity.axhline(COHERENT_RATIO, color=_GREY, linestyle=":", linewidth=1.2)
    perplexity.axhline(1, color=_GREY, linewidth=0.8, alpha=0.6, zorder=0)
    _head(perplexity, "Perplexity of what is written", "for the unsteered model; relative to the unsteered text")
    plain = [percent(row) for row in rows if row["strength"] == 0]
    for model, share in zip(labels, plain, strict=True):
        if share is not None:
            limit = share + 100 * COHERENT_REPETITION
            repetition.axhline(limit, color=_COLOURS[model], linestyle=":", linewidth=1.2)
    repetition.set_ylim(-3, 103)
    _head(repetition, "Repetition", "% of the text's 4-grams that stood in it before")
    perplexity.plot([], [], color=_GREY, linestyle=":", label="limit of coherence")
    hollow: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
    perplexity.plot([], [], color=_GREY, **hollow, label="not coherent (beyond either limit)")
    handles, names = perplexity.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=3 if len(names) > 4 else len(names), fontsize="small"
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()


def _scaled(name: str, factor: float = 1) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        return None if row[name] is None else factor * row[name]

    return value


def _head(axes: Axes, what: str, how: str) -> None:
    axes.set_title(f"{what}\n{how}", loc="left", fontsize="medium")


def _steps(axes: Axes) -> None:
    """Readable numbers on a logarithmic axis that may span less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.8), max(high, 1.25 * COHERENT_RATIO))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _roots(axes: Axes) -> None:
    """A scale of square roots: KL grows with the square of a small push, which would lie on the axis."""
    from matplotlib.ticker import FixedLocator

    top = max(axes.get_ylim()[1], 1e-3)
    axes.set_yscale("function", functions=(lambda y: abs(y) ** 0.5, lambda y: y**2))
    axes.set_ylim(0, top)
    marks = [m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([0.0, *(mark for mark in marks if top / 100 <= mark <= top)]))
    axes.yaxis.set_major_formatter("{x:g}")


def _lines(
    axes: Axes,
    rows: Sequence[Row],
    records: Sequence[Row],
    model: str,
    label: str,
    value: Callable[[Row], float | None],
) -> None:
    plain = [row for row in rows if row["strength"] == 0]
    pushed = [row for row in rows if row["direction"] == FEATURE]
    colour = _COLOURS[model]
    axes.plot(*_points(pushed, value), color=colour, marker="o", markersize=4.5, label=label)
    outside = [row for row in pushed if not row["coherent"]]
    # Drawn over the others: hollow.
    axes.plot(*_points(outside, value), color=colour, linestyle="", marker="o", markersize=4.5, markerfacecolor="white")
    random = [row for row in rows if row["direction"] == RANDOM]
    if not random:
        return
    names = {one["direction"] for one in records if one["model"] == model} - {FEATURE}
    axes.plot(
        *_points([*plain, *random], value),
        color=_COLOURS[model],
        linestyle="--",
        linewidth=1.2,
        alpha=0.75,
        label=f"{model}, {len(names)} random direction{'s' if len(names) > 1 else ''} of the same norm",
    )
    if len(names) > 1:
        axes.fill_between(*_band(plain, records, model, names, value), color=_COLOURS[model], alpha=0.12, linewidth=0)


def _band(
    plain: Sequence[Row], records: Sequence[Row], model: str, names: Iterable[str], value: Callable[[Row], float | None]
) -> tuple[list[float], list[float], list[float]]:
    """(strengths, lowest, highest) over the single random directions."""
    by_strength: dict[float, dict[str, list[Row]]] = {}
    for one in records:
        if one["model"] == model and one["direction"] in names:
            by_strength.setdefault(one["strength"], {}).setdefault(one["direction"], []).append(one)
    found: dict[float, list[float]] = {}
    for strength, groups in by_strength.items():
        for group in groups.values():
            row = pooled(group)
            row["perplexity_ratio"] = ratio(row["nats_per_token"], plain[0]["nats_per_token"])
            one_value = value(row)
            if one_value is not None:
                found.setdefault(strength, []).append(one_value)
    at_zero = value(plain[0])
    if at_zero is not None:
        found[0.0] = [at_zero]
    strengths = sorted(found)
    return strengths, [min(found[s]) for s in strengths], [max(found[s]) for s in strengths]


def _points(rows: Iterable[Row], value: Callable[[Row], float | None]) -> tuple[list[float], list[float]]:
    found = sorted((row["strength"], known) for row in rows if (known := value(row)) is not None)
    return [strength for strength, _ in found], [known for _, known in found]
