"""All that a person sees: data on stdout; one-line messages, progress and errors on stderr.

What comes from texts, models, names and manifests may hold anything. Whatever is printed goes through `visible` here
(tables: format.py), so that it never acts on the terminal; callers print it as it is.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import NamedTuple, TextIO

# Progress is one line that changes in a terminal, and elsewhere (a log, CI; a program that reads JSON) a line written
# this often.
_TERMINAL_SECONDS, _LOG_SECONDS, _JSON_SECONDS = 0.5, 15.0, 1.0
# So many steps tell a rate.
_STEPS = 5
_CLEAR_LINE = "\r\x1b[K"
_NEWLINE, _TAB, _UNPRINTABLE = "⏎", "⇥", "�"
_muted = _as_json = False
_ended: list[Ended] | None = None


class Ended(NamedTuple):
    """Progress that is over: when it began and ended, of `what`, and seconds of it that the work took at the rate
    between its first step and its last one, all of few steps. The others are what comes before and after, however much
    work there is."""

    start: float
    end: float
    what: str
    steady: float


@contextmanager
def unheard() -> Iterator[list[Ended]]:
    """Inside, `say` and `progress` show nothing; gives what ended, as it does."""
    global _muted, _ended
    before, ended = (_muted, _ended), list[Ended]()
    _muted, _ended = True, ended
    try:
        yield ended
    finally:
        _muted, _ended = before


def progress_as_json(wanted: bool) -> None:
    """Whether `progress` writes JSON from now on: an object a line, at its beginning, each second and at its end."""
    global _as_json
    _as_json = wanted


def mute() -> None:
    """From now on `say` and `progress` show nothing: of several processes of a run, one speaks."""
    global _muted
    _muted = True


def muted() -> bool:
    return _muted


def visible(text: str, *, lines: bool = False) -> str:
    """The text on one line: line ends as ⏎ (CRLF as one), tabs as ⇥, other control characters (terminal escapes,
    changes of writing direction, lone surrogates) as signs that do nothing; lines: line feeds stay as they are."""
    if lines:
        return "\n".join(map(visible, text.replace("\r\n", "\n").split("\n")))
    text = text.replace("\r\n", "\n")
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char in "\n\r\u2028\u2029\x85":
        return _NEWLINE
    if char == "\t":
        return _TAB
    code, category = ord(char), unicodedata.category(char)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's own pictures of control characters
    # Joiners of emoji and of Indic scripts are format characters too, and harmless.
    if category in ("Cc", "Cs") or (category == "Cf" and code not in (0x200C, 0x200D)):
        return _UNPRINTABLE
    return char


def echo(*lines: str) -> None:
    """Each a line to stdout; an empty one without any. A line end inside one does not begin another."""
    with stdout() as out:
        out.write("".join(f"{visible(line)}\n" for line in lines or ("",)))


@contextmanager
def stdout() -> Iterator[TextIO]:
    """For what was made visible. Raises OSError, which names stdout."""
    try:
        yield sys.stdout
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from None


def aside() -> redirect_stdout[TextIO]:
    """While this is entered, what others print to stdout goes to stderr: it is no result."""
    return redirect_stdout(sys.stderr)


def echo_wrapped(text: str, first: int = 0, indent: int = 0) -> None:
    """To stdout in 80 columns, the first line indented by `first` columns, those after it by `indent`."""
    echo(*wrapped(text, first, indent))


def wrapped(text: str, first: int = 0, indent: int = 2) -> list[str]:
    """As `echo_wrapped` prints it."""
    begin, behind = " " * first, " " * indent
    return textwrap.wrap(visible(text), 80, initial_indent=begin, subsequent_indent=behind, break_on_hyphens=False)


def say(message: str) -> None:
    """One line to stderr."""
    _write(f"{_CLEAR_LINE if sys.stderr.isatty() else ''}{visible(message)}\n")


def say_error(message: str) -> None:
    """One line to stderr, also where the console is muted."""
    _write(f"modeldiff: {visible(' '.join(message.split()))}\n", always=True)


def confirm(question: str) -> bool:
    """Ask on stderr, yes or no. Raises click.Abort: nobody answers."""
    import click

    try:
        return click.confirm(visible(question), err=True)
    except click.Abort:
        _write("\n")
        raise


def _write(text: str, *, always: bool = False) -> None:
    if always or not _muted:
        # A full disk or a reader that has gone takes the messages, and not the work that they are about.
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


class Progress:
    """Given out by `progress`: call `advance` as work gets done, `note` to show a few words behind the numbers."""

    def __init__(self, what: str, total: float, unit: str, done: float) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._begun_with = self._done = done
        self._start = self._shown = time.monotonic()
        self._steps, self._last = 0, self._start
        self._first = (self._start, done)
        self._note = ""
        if _as_json:
            self._show(self._start)

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now = self._last = time.monotonic()
        self._steps += 1
        if self._steps == 1:
            self._first = (now, self._done)
        seconds = _JSON_SECONDS if _as_json else _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
        if now - self._shown >= seconds:
            self._show(now)

    def _show(self, now: float) -> None:
        self._shown = now
        rate = (self._done - self._begun_with) / (now - self._start) if now > self._start else 0.0
        left = max(0.0, self._total - self._done) / rate if rate else None
        if _as_json:
            data = {"what": self._what, "done": self._done, "total": self._total, "unit": self._unit}
            _write(json.dumps(data | {"rate": rate, "seconds_left": left, "note": self._note}) + "\n")
            return
        done = f"{self._done:,.0f} of {self._total:,.0f} {self._unit}, {rate:,.1f}/s"
        line = visible(f"{self._what}: {done}, {left or 0:.0f} s left {self._note}".rstrip())
        in_terminal = sys.stderr.isatty()
        _write(f"{_CLEAR_LINE}{line[: shutil.get_terminal_size().columns - 1]}" if in_terminal else f"{line}\n")

    def finish(self) -> None:
        """Take the line away; in JSON, say how far it came."""
        if _ended is not None:
            end = time.monotonic()
            _ended.append(Ended(self._start, end, self._what, self._steady(end)))
        if _as_json:
            self._show(time.monotonic())
        elif sys.stderr.isatty():
            _write(_CLEAR_LINE)

    def _steady(self, end: float) -> float:
        when, done = self._first
        if self._steps < _STEPS or done >= self._done:
            return end - self._start
        return min(end - self._start, (self._last - when) * (self._done - self._begun_with) / (self._done - done))

    def note(self, text: str) -> None:
        self._note = text


@contextmanager
def progress(what: str, total: float, unit: str, done: float = 0) -> Iterator[Progress]:
    """Progress of `what` ("capture A"), which may take seconds, with rate and time left. Of the `total` amount of work,
    counted in `unit` ("pairs"), `done` was finished by an earlier run."""
    bar = Progress(what, total, unit, done)
    try:
        yield bar
    finally:
        bar.finish()
