"""Charts of the page, as SVG that takes its colours from the page's style: light, dark or printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 320, 110


def histogram(edges: Sequence[float], sources: Sequence[tuple[str, Sequence[int]]]) -> Markup:
    """Firings by activation; the sources of a bin stand on one another."""
    totals = [sum(counts) for counts in zip(*(counts for _, counts in sources), strict=True)]
    wide, most = _WIDTH / len(totals), max(totals)
    bars = []
    for at in range(len(totals)):
        base = float(_HEIGHT)
        for number, (name, counts) in enumerate(sources):
            tall = _HEIGHT * counts[at] / most
            base -= tall
            if counts[at]:
                what = f"{name}: {counts[at]:,} firings from {edges[at]:.3g} to {edges[at + 1]:.3g}"
                bars.append(_rect(at * wide + 1, base, wide - 2, tall, f"s{number}", what))
    label = f"activation {edges[0]:.3g} to {edges[-1]:.3g}, {sum(totals):,} firings, most in a bar {most:,}"
    return _svg("".join(bars), label)


def curve(steps: Sequence[int], lines: Mapping[str, Sequence[float | None]]) -> Markup:
    """Lines over the steps of a training, from 0 on. The first tenth does not set the scale: it may be far above."""
    later = [value for values in lines.values() for value in values[len(values) // 10 :]]
    known = [value for value in later if value is not None and math.isfinite(value)]
    top, last = max(known, default=1.0) or 1.0, max(steps[-1], 1)
    drawn = []
    for name, values in lines.items():
        points = " ".join(
            f"{_WIDTH * step / last:.1f},{_HEIGHT * (1 - min(1.0, max(0.0, value / top))):.1f}"
            for step, value in zip(steps, values, strict=True)
            if value is not None and math.isfinite(value)
        )
        drawn.append(Markup('<polyline class="line {}" points="{}"/>').format(name, points))
    return _svg("".join(drawn), f"steps 0 to {steps[-1]:,}, from 0 to {top:.3g}")


def bar(share: float, side: str, low: float | None = None, high: float | None = None) -> Markup:
    """A share of 1 as a bar in a model's colour, with an interval."""
    inside = _rect(0, 2, 100 * min(1.0, max(0.0, share)), 8, side, f"{share:.1%}")
    if low is not None and high is not None:
        at, until = (100 * min(1.0, max(0.0, value)) for value in (low, high))
        inside += _rect(at, 5, max(0.5, until - at), 2, "interval", f"{low:.1%} to {high:.1%}")
    return Markup('<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" role="img">{}</svg>').format(
        Markup(inside)
    )


def _rect(x: float, y: float, width: float, height: float, kind: str, title: str) -> str:
    return (
        f'<rect class="{escape(kind)}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _svg(inside: str, label: str) -> Markup:
    return Markup(
        '<figure><svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        "<figcaption>{}</figcaption></figure>"
    ).format(_WIDTH, _HEIGHT, label, Markup(inside), label)
