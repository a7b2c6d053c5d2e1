"""What a person sees while a stage works: one-line messages and progress, on stderr; data goes to stdout."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Progress is one line that changes in a terminal, and elsewhere (a log, CI) a line written this often.
_TERMINAL_SECONDS, _LOG_SECONDS = 0.5, 15.0
_CLEAR_LINE = "\r\x1b[K"
_muted = False


def mute() -> None:
    """From now on `say` and `progress` show nothing: of several processes of a run, one speaks."""
    global _muted
    _muted = True


def muted() -> bool:
    return _muted


def say(message: str) -> None:
    """One line to stderr."""
    _write(f"{_CLEAR_LINE if sys.stderr.isatty() else ''}{message}\n")


def _write(text: str) -> None:
    if not _muted:
        sys.stderr.write(text)
        sys.stderr.flush()


class Progress:
    """Given out by `progress`: call `advance` as work gets done, `note` to show a few words behind the numbers."""

    def __init__(self, what: str, total: float, unit: str, done: float) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._begun_with = self._done = done
        self._start = self._shown = time.monotonic()
        self._note = ""

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now = time.monotonic()
        in_terminal = sys.stderr.isatty()
        if now - self._shown < (_TERMINAL_SECONDS if in_terminal else _LOG_SECONDS):
            return
        self._shown = now
        rate = (self._done - self._begun_with) / (now - self._start)
        left = (self._total - self._done) / rate if rate else float("inf")
        done = f"{self._done:,.0f} of {self._total:,.0f} {self._unit}"
        line = f"{self._what}: {done}, {rate:,.1f}/s, {left:.0f} s left {self._note}".rstrip()
        _write(f"{_CLEAR_LINE}{line[: shutil.get_terminal_size().columns - 1]}" if in_terminal else f"{line}\n")

    def note(self, text: str) -> None:
        self._note = text


@contextmanager
def progress(what: str, total: float, unit: str, done: float = 0) -> Iterator[Progress]:
    """Progress of `what` ("capture A"), which may take seconds, with rate and time left. Of the `total` amount of work,
    counted in `unit` ("pairs"), `done` was finished by an earlier run."""
    try:
        yield Progress(what, total, unit, done)
    finally:
        if sys.stderr.isatty():
            _write(_CLEAR_LINE)
