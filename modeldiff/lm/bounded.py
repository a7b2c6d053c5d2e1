"""A limit of time and memory around code that came with a model: a chat template is a program."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from modeldiff.errors import MachineError

_STATM = Path("/proc/self/statm")


class _TooLong(BaseException):
    """No Exception: the code inside may catch those."""


@contextmanager
def bounded(what: str, seconds: float, memory_bytes: int) -> Iterator[None]:
    """Raise MachineError, which says `what` it is about, once the code inside takes more than `seconds`, or
    `memory_bytes` more than the process has. Costs some microseconds. In other threads than the main one there is no
    limit: signals do not reach them, and two of them would take each other's limit of memory for what was there before.
    Nor is there one of memory where the system does not tell it (macOS)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    limit = f"more than {seconds:g} s"
    try:
        with _memory(memory_bytes), _time(seconds):
            yield
    except _TooLong:
        raise MachineError(f"{what} takes {limit}: it was stopped") from None
    except MemoryError:
        raise MachineError(f"{what} takes more than {memory_bytes / 1e9:.0f} GB of memory: it was stopped") from None


@contextmanager
def _time(seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _stop)
    # Again and again: the first one may come where an exception is dropped (in a finalizer).
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _TooLong


@contextmanager
def _memory(more_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(_STATM.read_bytes().split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    limits = [used + more_bytes, *(one for one in (soft, hard) if one != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
