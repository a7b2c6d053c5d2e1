"""What a benchmark answers with, and how two ways of doing the same thing are timed against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        measured: None when it could not be; `note` says why.
        target: what to reach.
        unit: "x" (ratio of times: the other's / ours), "s", or "" for a share.
        at_least: the target is a lower bound; otherwise an upper one.
        note: sizes, absolute times, or the reason why it was skipped.
    """

    what: str
    measured: float | None
    target: float
    unit: str = "x"
    at_least: bool = True
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


@dataclass(frozen=True)
class Options:
    """What the user asked of all benchmarks.

    Attributes:
        peers: folder with checkouts of the peers, or None.
        rounds: times that each variant runs.
        folder: an empty folder for files.
    """

    peers: Path | None
    rounds: int
    folder: Path


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    before: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Wall seconds of every variant in every round; in a round each runs once, so that a busy moment meets all alike.

    Args:
        warm_up: rounds that are not counted.
        before: called before every run, outside the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm_up + rounds):
        for name, run in variants.items():
            if before:
                before()
            start = time.perf_counter()
            run()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], other: str, ours: str) -> float:
    """Median over the rounds of the other's time divided by ours: above 1 means that ours is faster."""
    return statistics.median(a / b for a, b in zip(seconds[other], seconds[ours], strict=True))


def milliseconds(seconds: list[float]) -> str:
    """The median, for a note."""
    return f"{1000 * statistics.median(seconds):.3g} ms"
