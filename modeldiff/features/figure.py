"""The picture of the evidence: how predictable exclusive features are from the other model, beside their controls."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.crosscoder import Crosscoder
from modeldiff.features.evidence import Evidence
from modeldiff.linear.verdict import Scale, ratios
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour-blind safe (Okabe and Ito); exclusive features in the colour of their model, as in the picture of the training.
_EXCLUSIVE = {"a": "#D55E00", "b": "#009E73"}
_SHARED, _RANDOM, _PERMUTED = "#56B4E9", "#CC79A7", "#999999"
_LOW, _HIGH = -0.1, 1.25
_DPI = 110


@dataclass(frozen=True)
class Group:
    """Features that are shown alike: R² from their own model and from the other one."""

    name: str
    colour: str
    marker: str
    own: NDArray[np.float32]
    other: NDArray[np.float32]

    @property
    def count(self) -> int:
        """Of those that were measured."""
        return int((~np.isnan(self.own) & ~np.isnan(self.other)).sum())


def groups(evidence: Evidence, crosscoder: Crosscoder, side: str) -> list[Group]:
    """Of one side, the exclusive features last: they are drawn on top."""
    own = crosscoder.slices[EXCLUSIVE[side]]
    r2, other = evidence.r2[side][own], evidence.r2[OTHER[side]][own]
    alone, random = evidence.alone[side], evidence.random[side]
    return [
        Group(f"{EXCLUSIVE[side]}-exclusive, permuted pairs", _PERMUTED, "o", r2, evidence.null[OTHER[side]][own]),
        Group("random directions", _RANDOM, "D", random.own, random.other),
        Group("shared, read from one model", _SHARED, "o", alone.own, alone.other),
        Group(f"{EXCLUSIVE[side]}-exclusive", _EXCLUSIVE[side], "o", r2, other),
    ]


def predictability_figure(evidence: Evidence, crosscoder: Crosscoder, title: str) -> bytes:
    """PNG: for each model R² from the other one against R² from its own, and below the ratios' distributions.

    The same evidence gives the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 9.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots(2, 2, gridspec_kw={"height_ratios": (1, 0.85)})
    scales = evidence.scales(crosscoder)
    for column, side in enumerate(SIDES):
        shown = groups(evidence, crosscoder, side)
        _scatter(axes[0, column], shown, scales[side], side)
        _distributions(axes[1, column], shown, scales[side], side)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=_DPI, metadata={"Software": None})
    return image.getvalue()


def _scatter(axes: Axes, shown: list[Group], scale: Scale, side: str) -> None:
    own, other = side.upper(), OTHER[side].upper()
    line = np.array([0.0, 1.0])
    axes.fill_between(line, -1, scale.bar * line, color=_EXCLUSIVE[side], alpha=0.08, linewidth=0)
    for ratio, style, label in (
        (1.0, ":", "as well as from the own model"),
        (scale.predictable_from, "--", f"predictable from {scale.predictable_from:.2f}"),
        (scale.bar, "-", f"exclusive up to {scale.bar:.2f}"),
    ):
        axes.plot(line, ratio * line, color="black", linewidth=0.8, linestyle=style, label=label)
    for group in shown:
        size = 22 if group is shown[-1] else 9
        edge = {"edgecolors": "black", "linewidths": 0.4} if group is shown[-1] else {"linewidths": 0}
        name = f"{group.name} ({group.count:,})"
        axes.scatter(
            group.own, group.other, s=size, color=group.colour, alpha=0.8, marker=group.marker, label=name, **edge
        )
    axes.set(
        title=f"model {own}",
        xlabel=f"R² from {own}'s activations (held out)",
        ylabel=f"R² from {other}'s",
        xlim=(0, 1),
        ylim=(-0.08, 1),
    )
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize="x-small", loc="upper left")


def _distributions(axes: Axes, shown: list[Group], scale: Scale, side: str) -> None:
    """Of each group, the share whose ratio is at most so large."""
    own, other = side.upper(), OTHER[side].upper()
    axes.axvspan(_LOW, scale.bar, color=_EXCLUSIVE[side], alpha=0.08, linewidth=0)
    axes.axvline(scale.bar, color="black", linewidth=0.8)
    axes.axvline(scale.predictable_from, color="black", linewidth=0.8, linestyle="--")
    axes.axvline(scale.ratio_median, color=_SHARED, linewidth=0.8, linestyle="-.")
    for group in shown:
        ratio = np.sort(ratios(group.own, group.other))
        if not len(ratio):
            continue
        style: dict[str, Any] = {"linewidth": 2.2 if group is shown[-1] else 1.4, "color": group.colour}
        # Rounded first: what is just below 0 would be "-0.00".
        name = f"{group.name}: median {round(float(np.median(ratio)), 2) + 0.0:.2f} (of {len(ratio):,})"
        steps = np.concatenate([[min(_LOW, ratio[0])], ratio, [max(_HIGH, ratio[-1])]])
        share = np.concatenate([[0], np.arange(1, len(ratio) + 1), [len(ratio)]]) / len(ratio)
        axes.step(steps, share, where="post", label=name, **style)
    axes.set(
        xlabel=f"ratio: R² from {other} / R² from {own}",
        ylabel="share of the group at or below",
        xlim=(_LOW, _HIGH),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.16))
