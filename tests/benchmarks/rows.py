"""What a benchmark answers with, and how ways of doing the same thing are timed against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: float | None
    """None when it could not be; `note` says why."""
    target: float
    unit: str = "x"
    """ "x" (ratio of times: the other's / ours), "s", or "" for a share."""
    at_least: bool = True
    """The target is a lower bound; otherwise an upper one."""
    note: str = ""
    """Sizes, absolute times, or the reason why it was skipped."""

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


@dataclass(frozen=True)
class Options:
    """What the user asked of all benchmarks."""

    peers: Path | None
    """Folder with checkouts of the peers."""
    rounds: int
    """Times that each variant runs."""
    folder: Path
    """An empty folder for files."""


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, *, before: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Wall seconds of every variant in every round but a first one that warms up; in a round each runs once, so that a
    busy moment meets all alike. `before` is called before every run, outside the time."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1 + rounds):
        for name, run in variants.items():
            if before:
                before()
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], other: str, ours: str) -> float:
    """Median over the rounds of the other's time divided by ours: above 1 means that ours is faster."""
    return statistics.median(a / b for a, b in zip(seconds[other], seconds[ours], strict=True))


def against(
    what: str, seconds: Mapping[str, list[float]], other: str, target: float, *notes: str, ours: str = "ours"
) -> Row:
    """How many times faster than the other ours is; the note ends with the median time of both."""
    times = (f"{name} {1000 * statistics.median(seconds[name]):.3g} ms" for name in (ours, other))
    return Row(what, ratio(seconds, other, ours), target, note="; ".join([*notes, *times]))


def mib(size: int | None) -> str:
    """Bytes in MiB, "-" where they were not measured."""
    return "-" if size is None else f"{size / 2**20:.0f}"
