"""A command line in a child process of its own: what it said, how it ended, and what is wrong with that."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import CONTEXT

HANG_SECONDS = 10.0
"""A nonsensical input must be refused by then."""


@dataclass
class Outcome:
    """How a command ended."""

    args: Sequence[str]
    code: int | None
    """Exit code, negative for a signal; None: it had to be killed."""
    out: str
    err: str
    seconds: float
    what: str = field(default="")
    """What was done to it, for the report."""

    @property
    def last_line(self) -> str:
        return (self.err.strip().splitlines() or [""])[-1]

    @property
    def fault(self) -> str | None:
        """What a user should never meet: a traceback, a crash, a hang, an error without its line; None: nothing."""
        if self.code is None:
            return f"hangs for {self.seconds:.0f} s"
        if self.code < 0:
            return f"dies by signal {-self.code}"
        if "Traceback (most recent call last)" in self.out + self.err:
            return f"traceback: {self.last_line}"
        if self.code not in (0, 1, 2, 130):
            return f"exit code {self.code}"
        if self.code in (1, 2) and not ("modeldiff: " in self.err or "Usage: " in self.err or self.out.strip()):
            return f"exit code {self.code} without a word"
        return None


def call(*args: str, seconds: float = 300, before: Callable[[], None] | None = None) -> Outcome:
    """Run `modeldiff ARGS` to its end, or kill it after so many seconds. before: called in the child first."""
    (found,) = call_each([args], seconds=seconds, before=before)
    return found


def call_each(
    commands: Sequence[Sequence[str]], *, seconds: float = HANG_SECONDS, before: Callable[[], None] | None = None
) -> list[Outcome]:
    """Run the commands one after the other in one child, which is replaced where one hangs or crashes."""
    found: list[Outcome] = []
    while len(found) < len(commands):
        with tempfile.TemporaryDirectory() as folder:
            process = CONTEXT.Process(target=_run_each, args=(Path(folder), list(commands[len(found) :]), before))
            process.start()
            found += _watch(process, Path(folder), list(commands[len(found) :]), seconds)
            process.kill()
            process.join()
    return found


def _watch(process: Any, folder: Path, commands: list[Sequence[str]], seconds: float) -> list[Outcome]:
    """The outcomes of those that ended, and of the one that did not, if there is one."""
    found: list[Outcome] = []
    for number, args in enumerate(commands):
        began = time.monotonic()
        done = folder / f"{number}.code"
        while not done.exists() and process.is_alive() and time.monotonic() - began < seconds:
            process.join(0.002)
        process.join(0.01 if number == len(commands) - 1 else 0)
        code = int(done.read_text()) if done.exists() else process.exitcode
        texts = [_read(folder / f"{number}.{stream}") for stream in ("out", "err")]
        found.append(Outcome(args, code, *texts, time.monotonic() - began))
        if not done.exists():
            break
    return found


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _run_each(folder: Path, commands: list[Sequence[str]], before: Callable[[], None] | None) -> None:
    import torch

    from modeldiff.cli.main import run

    torch.set_num_threads(1)
    kept = os.dup(1), os.dup(2)
    for number, args in enumerate(commands):
        for descriptor, stream in ((1, "out"), (2, "err")):
            opened = os.open(folder / f"{number}.{stream}", os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        if before:
            before()
        code: Any = 0
        try:
            run(list(args))
        except SystemExit as stop:
            code = stop.code or 0
        temporary = folder / f"{number}.tmp"
        temporary.write_text(str(int(code)))
        temporary.rename(folder / f"{number}.code")
    os.dup2(kept[0], 1)
    os.dup2(kept[1], 2)
