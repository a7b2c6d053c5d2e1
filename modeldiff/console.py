"""What a person sees while a stage works: one-line messages and progress bars, on stderr; data goes to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Where there is no terminal (a log, CI) a line is written this often instead of a moving bar.
_LOG_SECONDS = 15.0
_muted = False


def mute() -> None:
    """From now on `say` and `progress` show nothing: of several processes of a run, one speaks."""
    global _muted
    _muted = True


def muted() -> bool:
    """True after `mute`."""
    return _muted


def say(message: str) -> None:
    """One line to stderr, as plain text: nothing in it is taken for markup."""
    if not _muted:
        print(message, file=sys.stderr, flush=True)  # noqa: T201


class Progress:
    """Handle given out by `progress`: call `advance` as work gets done, `note` to show a few words beside the bar."""

    def advance(self, amount: float = 1) -> None:
        raise NotImplementedError

    def note(self, text: str) -> None:
        raise NotImplementedError


class _LogProgress(Progress):
    def __init__(self, what: str, total: float, unit: str, done: float) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._begun_with = self._done = done
        self._start = self._last = time.monotonic()
        self._note = ""

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last >= _LOG_SECONDS:
            self._last = now
            rate = (self._done - self._begun_with) / (now - self._start)
            left = (self._total - self._done) / rate if rate else float("inf")
            done = f"{self._done:,.0f} of {self._total:,.0f} {self._unit}"
            say(f"{self._what}: {done}, {rate:,.1f}/s, {left:.0f} s left {self._note}".rstrip())

    def note(self, text: str) -> None:
        self._note = text


class _BarProgress(Progress):
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: float = 1) -> None:
        self._bar.advance(self._task, amount)
        task = self._bar.tasks[0]
        if task.speed:
            self._bar.update(self._task, rate=f"{task.speed:,.0f}" if task.speed >= 10 else f"{task.speed:.2f}")

    def note(self, text: str) -> None:
        self._bar.update(self._task, note=text)


@contextmanager
def progress(what: str, total: float, unit: str, done: float = 0) -> Iterator[Progress]:
    """Progress of something that may take more than two seconds, with rate and time left.

    Args:
        what: e.g. "capture A".
        total: amount of work; `done` of it was finished by an earlier run.
        unit: what is counted, e.g. "pairs".
    """
    if _muted or not sys.stderr.isatty():
        yield _LogProgress(what, total, unit, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[unit]}/s", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=int(total), completed=int(done), unit=unit, note="", rate="-")
        yield _BarProgress(bar, task)
