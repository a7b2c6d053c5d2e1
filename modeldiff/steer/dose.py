"""What a push does and what it costs, against its strength: the numbers, the coherent range and the figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from modeldiff.figures import new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
FEATURE, RANDOM = "feature", "random"
"""What pushed. Unsteered generations (strength 0) count as pushed by the feature."""
COHERENT_RATIO = 2.0
"""A strength is coherent if the perplexity of what is written stays below this times that of the unsteered texts..."""
COHERENT_REPETITION = 0.2
"""...and the share of repeated 4-grams above theirs by no more than this: loops have a low perplexity."""
# Colour-blind safe (Okabe and Ito), as in the picture of a training run.
_COLOURS = {"A": "#D55E00", "B": "#009E73"}
_GREY = "#777777"


def dose_rows(records: Sequence[Row]) -> list[Row]:
    """One row for each model, kind of direction (random ones together) and strength, in the order of the records.

    Nats are over all tokens together, repetition is the mean over the texts. What is missing (not finite; a text too
    short to repeat itself) is left out; None where nothing is left.
    """
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for one in records:
        groups.setdefault((one["model"], one["direction"].split()[0], one["strength"]), []).append(one)
    rows = [dict(zip(("model", "direction", "strength"), key, strict=True)) | _means(of) for key, of in groups.items()]
    unsteered = {row["model"]: row for row in rows if row["strength"] == 0}
    return [row | _coherence(row, unsteered[row["model"]]) for row in rows]


def _means(records: Sequence[Row]) -> Row:
    repeated = [one["repeated"] for one in records if one["repeated"] is not None]
    return {
        "generations": len(records),
        "nats_per_token": _weighted((one["nats_per_token"], one["tokens"]) for one in records),
        "repeated": fmean(repeated) if repeated else None,
        "kl": _weighted((one["kl"], one["kl_tokens"]) for one in records),
    }


def _weighted(values: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _coherence(row: Row, unsteered: Row) -> Row:
    nats, before = row["nats_per_token"], unsteered["nats_per_token"]
    # 700: where a float ends; so far from the unsteered text the number says nothing.
    ratio = None if nats is None or before is None else math.exp(min(nats - before, 700.0))
    loops = (row["repeated"] or 0.0) > (unsteered["repeated"] or 0.0) + COHERENT_REPETITION
    return {"perplexity_ratio": ratio, "coherent": ratio is not None and ratio < COHERENT_RATIO and not loops}


def coherent_range(rows: Sequence[Row], model: str) -> dict[str, float]:
    """How far from 0 the feature's strengths stay coherent on either side, without a gap: `from` and `to`.

    `least` and `most` are the strengths that were tried.
    """
    mine = {row["strength"]: row for row in rows if row["model"] == model and row["direction"] == FEATURE}
    ends = {}
    for end, sign in (("from", -1), ("to", 1)):
        tried = sorted((strength for strength in mine if strength * sign > 0), key=abs)
        ends[end] = [0.0, *itertools.takewhile(lambda strength: mine[strength]["coherent"], tried)][-1]
    return {**ends, "least": min(mine), "most": max(mine)}


def dose_figure(rows: Sequence[Row], labels: dict[str, str], title: str) -> bytes:
    """PNG: KL, perplexity and repetition over the strength; solid the feature, dashed random directions, dotted the
    limits of coherence; points beyond them are hollow. The same rows give the same bytes."""
    figure = new_figure(13, 4.9)
    figure.suptitle(title)
    effect, perplexity, repetition = figure.subplots(1, 3)
    for axes, name in ((effect, "kl"), (perplexity, "perplexity_ratio"), (repetition, "repeated")):
        for model, label in labels.items():
            _lines(axes, [row for row in rows if row["model"] == model], name, _COLOURS[model], label)
        axes.axvline(0, color=_GREY, linewidth=0.8, alpha=0.6, zorder=0)
        axes.set_xlabel("strength (1: the feature's maximum activation)")
        axes.grid(alpha=0.3)
    # Of a small push KL grows with the square: near 0 the scale is linear, beyond logarithmic.
    effect.set_yscale("symlog", linthresh=0.01)
    effect.set_ylim(bottom=0)
    effect.set_title("KL(steered || unsteered)\non the unsteered text, nats per token", fontsize="medium")
    perplexity.set_yscale("log")
    perplexity.axhline(COHERENT_RATIO, color=_GREY, linestyle=":", linewidth=1.2, label="limit of coherence")
    perplexity.set_title("Perplexity of what is written\nrelative to the unsteered text", fontsize="medium")
    for row in rows:
        if row["strength"] == 0 and row["repeated"] is not None:
            limit = row["repeated"] + COHERENT_REPETITION
            repetition.axhline(limit, color=_COLOURS[row["model"]], linestyle=":", linewidth=1.2)
    repetition.set_ylim(-0.03, 1.03)
    repetition.set_title("Repetition\nshare of the text's 4-grams that stood in it before", fontsize="medium")
    perplexity.plot([], [], color=_GREY, linestyle="", marker="o", markerfacecolor="white", label="not coherent")
    handles, names = perplexity.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize="small")
    return png(figure)


def _lines(axes: Axes, rows: Sequence[Row], name: str, colour: str, label: str) -> None:
    """One model's lines of one figure. Gaps where there is no number."""

    def drawn(kept: Iterable[Row], **style: Any) -> None:
        points = sorted((row["strength"], math.nan if row[name] is None else row[name]) for row in kept)
        axes.plot([at for at, _ in points], [value for _, value in points], color=colour, **style)

    pushed = [row for row in rows if row["direction"] == FEATURE]
    random = [row for row in rows if row["direction"] == RANDOM]
    drawn(pushed, marker="o", markersize=4.5, label=label)
    outside = [row for row in pushed if not row["coherent"]]
    drawn(outside, linestyle="", marker="o", markersize=4.5, markerfacecolor="white")
    if random:
        unsteered = [row for row in pushed if row["strength"] == 0]
        drawn([*unsteered, *random], linestyle="--", linewidth=1.2, alpha=0.75, label="random, of the same norm")
