"""Pictures beside a result: drawn whatever backend the environment names, and never in the way of the result."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from modeldiff.console import say
from modeldiff.errors import first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from modeldiff.workspace import Work


def new_figure(width: float, height: float) -> Figure:
    """An empty one of so many inches, which nothing but `png` will show."""
    try:
        import matplotlib
    except ValueError:  # a notebook's backend that is not installed here: matplotlib does not even load
        named = os.environ.pop("MPLBACKEND", "")
        try:
            import matplotlib  # noqa: F401
        finally:
            os.environ["MPLBACKEND"] = named
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The same figure gives the same bytes."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()


def write_figure(work: Work, name: str, draw: Callable[[], bytes]) -> None:
    """Write what `draw` gives as the file `name` of an artifact; if it cannot be drawn, say so."""
    try:
        image = draw()
    except Exception as error:  # a library that is not sound, fonts, memory: the result is worth more
        say(f"{name} cannot be drawn ({first_line(error)}): the rest is there without it")
    else:
        work.write_bytes(name, image)
