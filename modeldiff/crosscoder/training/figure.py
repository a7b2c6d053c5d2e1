"""The picture of a training run: loss, FVE, active features and slots per partition over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modeldiff.figures import new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour-blind safe (Okabe and Ito), the same for a partition in every panel.
_COLOURS = {"A": "#D55E00", "shared": "#56B4E9", "B": "#009E73"}
_NAMES = {"A": "A-exclusive", "shared": "shared", "B": "B-exclusive"}


def training_figure(lines: Sequence[dict[str, Any]], title: str) -> bytes:
    """PNG of the lines of training.jsonl; grey verticals are audits. The same lines give the same bytes."""
    figure = new_figure(10, 7)
    figure.suptitle(title)
    panels = figure.subplots(2, 2).flat
    audits = [line["step"] for line in lines if line["audit"]]
    for axes, draw in zip(panels, (_loss, _fve, _active, _slots), strict=True):
        draw(axes, lines, [line["step"] for line in lines])
        for step in audits:
            axes.axvline(step, color="grey", linewidth=0.6, alpha=0.5, zorder=0)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return png(figure)


def _loss(loss: Axes, lines: Sequence[dict[str, Any]], steps: list[int]) -> None:
    loss.plot(steps, [line["reconstruction"] for line in lines], color="black", label="reconstruction")
    with_auxk = [(line["step"], line["auxk"]) for line in lines if line["auxk"] is not None]
    if with_auxk:
        loss.plot(*zip(*with_auxk, strict=True), ".", color="grey", markersize=3, label="auxiliary (dead features)")
    loss.set(ylabel="loss per pair", yscale="log")


def _fve(fve: Axes, lines: Sequence[dict[str, Any]], steps: list[int]) -> None:
    for side, colour in (("a", _COLOURS["A"]), ("b", _COLOURS["B"])):
        fve.plot(steps, [line["fve"][side] for line in lines], color=colour, label=f"model {side.upper()}")
        only = [line["fve_shared"][side] for line in lines]
        fve.plot(steps, only, color=colour, linestyle=":", label=f"model {side.upper()}, shared features only")
    values = [line[key][side] for line in lines for key in ("fve", "fve_shared") for side in "ab"]
    fve.set(ylabel="fraction of variance explained", ylim=(max(-0.05, min(values) - 0.02), 1))


def _active(active: Axes, lines: Sequence[dict[str, Any]], steps: list[int]) -> None:
    for partition, colour in _COLOURS.items():
        l0 = [line["l0"][partition] for line in lines]
        if any(l0) or partition == "shared":
            active.plot(steps, l0, color=colour, label=_NAMES[partition])
    active.plot(steps, [line["k"] for line in lines], color="black", linewidth=0.8, linestyle="--", label="k")
    active.set(ylabel="active features per pair", yscale="log")


def _slots(slots: Axes, lines: Sequence[dict[str, Any]], steps: list[int]) -> None:
    exclusive = [p for p in ("A", "B") if any(line["features"][p] for line in lines)]
    for partition in exclusive:
        values = [100 * line["slots"][partition] for line in lines]
        slots.plot(steps, values, color=_COLOURS[partition], label=f"{_NAMES[partition]}, of the slots")
        size = [100 * line["features"][partition] / sum(line["features"].values()) for line in lines]
        label = f"{_NAMES[partition]}, of the features"
        slots.step(steps, size, where="post", color=_COLOURS[partition], linestyle=":", label=label)
    slots.set(ylabel="share of the exclusive partitions (%)")
    if not exclusive:  # the standard crosscoder
        slots.plot(steps, [line["dead"]["shared"] for line in lines], color=_COLOURS["shared"], label="shared")
        slots.set(ylabel="dead features")
    slots.set_ylim(bottom=0)
