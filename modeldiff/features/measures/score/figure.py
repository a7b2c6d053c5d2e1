"""The picture of a score artifact: how the scores of each group are distributed, controls beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from modeldiff.features.measures.score.result import ScoreRow

# Colour-blind safe (Okabe and Ito).
_COLOURS = {"A": "#D55E00", "B": "#009E73", "shared": "#56B4E9", "random": "#999999"}
_NAMES = {"A": "A-exclusive", "B": "B-exclusive", "shared": "shared", "random": "random directions"}
_BINS = np.linspace(1, 5, 21)


def score_figure(groups: Sequence[dict[str, Any]], rows: Sequence[ScoreRow], title: str) -> bytes:
    """PNG: one panel per way of moving, a histogram per group. The same rows give the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(group["source"] for group in groups))
    figure = Figure(figsize=(10, 2.6 * len(sources) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(len(sources), 1, squeeze=False)[:, 0]
    for source, axes in zip(sources, panels, strict=True):
        for group in (group for group in groups if group["source"] == source and group["scored"]):
            partition = group["partition"]
            scores = [
                row.score
                for row in rows
                if (row.partition, row.source) == (partition, source) and row.score is not None
            ]
            share = np.full(len(scores), 100 / len(scores))
            label = f"{_NAMES[partition]} ({len(scores)})"
            axes.hist(
                scores, _BINS, weights=share, histtype="step", linewidth=1.6, color=_COLOURS[partition], label=label
            )
        other = "B" if source == "A" else "A"
        axes.set(xlabel=f"score, {source} -> {other}", ylabel="share of the group (%)", xlim=(1, 5))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()
