"""What a person sees while cells are computed, on stderr: a table that fills, cells done, rate and time left."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from modeldiff.console import say
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.plan import Planned
from modeldiff.toy.summary import exclusive_recall

# Where there is no terminal a line is written this often, as `console.progress` does; on one the table is redrawn.
_LOG_SECONDS = 15.0
_DRAW_SECONDS = 0.3


def work(cell: CellSpec) -> float:
    """How long a cell takes, relative to others: pairs times the rows of its matrices."""
    train, world = cell.train, cell.world
    return float(train["steps"] * train["batch"] * (train["features"] + world.width_a + world.width_b))


class Board:
    """Progress of the cells to compute, and the means of those that are ready.

    Args:
        cells: where each distinct cell stands in the tables, by any key.
        to_do: the keys of those that are not in the cache.
    """

    def __init__(self, cells: Mapping[str, Sequence[Planned]], to_do: Sequence[str]) -> None:
        first = next(iter(cells.values()))[0].table
        # The first table only: it is the benchmark, the others are about details.
        self._places = {
            key: [(one.cell.world.map, one.cell.architecture, one.size) for one in planned if one.table == first]
            for key, planned in cells.items()
        }
        self._work = {key: work(cells[key][0].cell) for key in to_do}
        self._part: dict[str, float] = {}
        self._computed = 0
        self._done = 0
        self._recalls: dict[tuple[str, str, float], list[float]] = defaultdict(list)
        self._start = self._last = time.monotonic()
        self._live: Any = None

    def add(self, key: str, result: dict[str, Any]) -> None:
        """A cell is ready."""
        self._done += 1
        if key in self._work:
            self._computed += 1
            self._part[key] = 1.0
        recall = exclusive_recall(result)
        if recall is not None:
            for place in self._places[key]:
                self._recalls[place].append(recall)
        self._draw(key)

    def step(self, key: str, done: int, total: int) -> None:
        """So many of a cell's steps are done."""
        self._part[key] = done / total
        self._draw(key)

    def status(self) -> str:
        """12 of 80 cells, 2.1/min, 340 s left."""
        text = f"{self._done} of {len(self._places)} cells"
        seconds = time.monotonic() - self._start
        worked = sum(share * self._work[key] for key, share in self._part.items())
        if not self._computed or not seconds:
            return text
        left = (sum(self._work.values()) - worked) * seconds / worked
        return f"{text}, {60 * self._computed / seconds:.1f}/min, {left:,.0f} s left"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while the cells are computed."""
        self._start = self._last = time.monotonic()
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(self.table(), console=Console(stderr=True), auto_refresh=False, transient=True) as self._live:
            yield

    def _draw(self, key: str) -> None:
        now = time.monotonic()
        if now - self._last < (_DRAW_SECONDS if self._live else _LOG_SECONDS):
            return
        self._last = now
        if self._live:
            self._live.update(self.table(), refresh=True)
            return
        means = [
            f"; {map_name} {size:.0%} {architecture}: exclusive recall {fmean(found):.2f} so far"
            for map_name, architecture, size in self._places[key]
            if (found := self._recalls.get((map_name, architecture, size)))
        ]
        say(f"toy: {self.status()}{''.join(means[:1])}")

    def table(self) -> Any:
        """The mean exclusive recall so far, maps and architectures down, sizes across."""
        from rich.table import Table

        places = dict.fromkeys(place for places in self._places.values() for place in places)
        sizes = sorted({size for _, _, size in places})
        made = Table(title=f"toy: {self.status()}", title_justify="left", box=None, pad_edge=False)
        made.add_column("exclusive recall so far")
        for size in sizes:
            made.add_column(f"{100 * size:.3g}%", justify="right")
        for map_name, architecture in dict.fromkeys(place[:2] for place in places):
            found = [self._recalls.get((map_name, architecture, size)) for size in sizes]
            made.add_row(f"{map_name} {architecture}", *(f"{fmean(one):.2f}" if one else "-" for one in found))
        return made
