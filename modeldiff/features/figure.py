"""The picture of the evidence: how predictable exclusive features are from the other model, beside their controls."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modeldiff.crosscoder import Crosscoder
from modeldiff.features.evidence import Evidence
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES

# Colour-blind safe (Okabe and Ito); exclusive features in the colour of their model, as in the picture of the training.
_EXCLUSIVE = {"a": "#D55E00", "b": "#009E73"}
_SHARED, _DIFFERENCE, _PERMUTED = "#56B4E9", "#CC79A7", "#999999"


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
    r2, other, null = evidence.r2[side][own], evidence.r2[OTHER[side]][own], evidence.null[OTHER[side]][own]
    alone, difference = evidence.alone[side], evidence.difference[side]
    return [
        Group(f"{EXCLUSIVE[side]}-exclusive, permuted pairs", _PERMUTED, "o", r2, null),
        Group("differences of two activations", _DIFFERENCE, "D", difference.own, difference.other),
        Group("shared, read from one model", _SHARED, "o", alone.own, alone.other),
        Group(f"{EXCLUSIVE[side]}-exclusive", _EXCLUSIVE[side], "o", r2, other),
    ]


def predictability_figure(evidence: Evidence, crosscoder: Crosscoder, title: str) -> bytes:
    """PNG: for each model R² from the other one against R² from its own. The same evidence gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    line = np.array([0.0, 1.0])
    for axes, side in zip(figure.subplots(1, 2), SIDES, strict=True):
        scale = evidence.scales(crosscoder)[side]
        axes.fill_between(line, -1, scale.bar * line, color=_EXCLUSIVE[side], alpha=0.08, linewidth=0)
        for ratio, style, label in (
            (1.0, ":", "as well as from the own model"),
            (scale.predictable_from, "--", f"predictable from {scale.predictable_from:.2f}"),
            (scale.bar, "-", f"exclusive up to {scale.bar:.2f}"),
        ):
            axes.plot(line, ratio * line, color="black", linewidth=0.8, linestyle=style, label=label)
        *controls, exclusive = groups(evidence, crosscoder, side)
        for group in (*controls, exclusive):
            look = {"s": 22, "edgecolors": "black", "linewidths": 0.4} if group is exclusive else {"s": 9, "lw": 0}
            name = f"{group.name} ({group.count:,})"
            axes.scatter(group.own, group.other, color=group.colour, alpha=0.8, marker=group.marker, label=name, **look)
        own, other = side.upper(), OTHER[side].upper()
        axes.set(xlabel=f"R² from {own}'s activations (held out)", ylabel=f"R² from {other}'s", title=f"model {own}")
        axes.set(xlim=(0, 1), ylim=(-0.08, 1))
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], fontsize="x-small", loc="upper left")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()
