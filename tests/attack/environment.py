"""Odd surroundings: streams that are closed, full or cannot encode, no home, no terminal, locales, a workspace that
may only be read, a folder without permission, a file system without locks. One line at most, and the cache is shown."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.child import Outcome
from tests.attack.world import World

# Linux: what lets root pass over permissions, and how a process gives it up for the program that it starts.
_CAPABILITIES, _DROP = (1, 2), 24
# Put in front of the command: what follows runs where `flock` is refused, as by some network file systems.
_NO_LOCKS = """
import errno, fcntl, sys
def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = fcntl.lockf = refuse
from modeldiff.cli.main import run
run(sys.argv[1:])
"""


@dataclass(frozen=True)
class Case:
    """A command in odd surroundings.

    Attributes:
        env: variables that are set, or taken away (None).
        close: descriptors that are closed; to: where stdout goes instead.
        lock: how the workspace is made hard to use before; obeys_permissions: whether root, too, obeys permissions.
        codes: how it may end; shows: what must be on stdout.
    """

    name: str
    args: tuple[str, ...]
    env: dict[str, str | None] = field(default_factory=dict)
    close: tuple[int, ...] = ()
    to: str | None = None
    lock: Callable[[Path], None] | None = None
    obeys_permissions: bool = False
    no_locks: bool = False
    codes: tuple[int, ...] = (0,)
    shows: str = ""


LIST, SHOW = ("workspace", "list"), ("contrast", "--show", "latest")
FEATURES, VERIFY = ("features", "--sample-pairs", "2000", "--exclusive", "A"), ("workspace", "verify")


def read_only(workspace: Path) -> None:
    for path in [workspace, *workspace.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def one_unreadable(workspace: Path) -> None:
    read_only(workspace)
    (workspace / "features" / "1" / "features.json").chmod(0)


def no_entry(workspace: Path) -> None:
    workspace.chmod(0)


def cases(world: World) -> list[Case]:
    train = next(stage.args for stage in world.stages if stage.kind == "crosscoder")
    again = (*train, "--seed", "5")
    readers = {"list": (LIST, "crosscoder:1"), "contrast": (SHOW, ""), "features": (FEATURES, "A")}
    found = [
        Case("no HOME", LIST, {"HOME": None, "XDG_CACHE_HOME": None}, shows="crosscoder:1"),
        Case("HOME that is not there", LIST, {"HOME": "/nonexistent"}, shows="crosscoder:1"),
        Case("no TERM", LIST, {"TERM": None}, shows="crosscoder:1"),
        Case("one column", FEATURES, {"COLUMNS": "1"}),
        Case("no variables but PATH", LIST, dict.fromkeys(os.environ, None) | {"PATH": os.environ["PATH"]}),
        Case("a notebook's backend", again, {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}),
        Case("stdout closed", LIST, close=(1,), codes=(0, 1)),
        Case("stderr closed", LIST, close=(2,), shows="crosscoder:1"),
        Case("stdin closed", LIST, close=(0,), shows="crosscoder:1"),
        Case("stdout full", LIST, to="/dev/full", codes=(1,)),
        Case("stdout into head", FEATURES, to="|", codes=(0, 1, 141, -signal.SIGPIPE)),
        Case("may not enter", LIST, lock=no_entry, obeys_permissions=True, codes=(1, 2)),
        Case("train, read only", again, lock=read_only, obeys_permissions=True, codes=(1, 2)),
        Case("train, without locks", again, no_locks=True, codes=(0, 1)),
        Case("verify, one file unreadable", VERIFY, lock=one_unreadable, obeys_permissions=True, codes=(1,)),
        Case("list, one file unreadable", LIST, lock=one_unreadable, obeys_permissions=True, shows="crosscoder:1"),
        Case("verify, read only", VERIFY, lock=read_only, obeys_permissions=True),
        Case("train from the cache, read only", train, lock=read_only, obeys_permissions=True),
    ]
    for locale in ("C", "POSIX", "C.UTF-8", "tr_TR.UTF-8", "de_DE.ISO-8859-1"):
        found.append(Case(f"locale {locale}", SHOW, {"LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "0"}))
    for encoding in ("ascii", "latin-1", "cp1252", "utf-16"):
        found.append(Case(f"streams in {encoding}", FEATURES, {"PYTHONIOENCODING": encoding}))
    for name, (args, shows) in readers.items():
        found.append(Case(f"{name}, read only", args, lock=read_only, obeys_permissions=True, shows=shows))
        found.append(Case(f"{name}, without locks", args, no_locks=True, shows=shows))
    return found


def attack(world: World, folder: Path, _count: int, _seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """Every case, and what is wrong with how it ended."""
    folder.chmod(0o755)
    for case in cases(world):
        workspace = world.copy(folder / "environment")
        if case.lock:
            case.lock(workspace)
        outcome = _run(case, workspace)
        for path in [workspace, *workspace.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(workspace)
        yield outcome, _wrong(case, outcome)


def _wrong(case: Case, outcome: Outcome) -> str | None:
    if outcome.code in case.codes and outcome.code in (141, -signal.SIGPIPE):
        return None
    if case.close or case.to:  # nothing can be said where nobody hears it
        fault = outcome.fault if "without a word" not in str(outcome.fault) else None
    else:
        fault = outcome.fault
    if fault or outcome.code not in case.codes:
        return fault or f"exit code {outcome.code}: {outcome.last_line}"
    return None if case.shows in outcome.out else f"does not show {case.shows}: {outcome.out[:80]!r}"


def _run(case: Case, workspace: Path) -> Outcome:
    program = ["-c", _NO_LOCKS] if case.no_locks else ["-m", "modeldiff"]
    args = ["--workspace", str(workspace), *case.args]
    env = {"PYTHONPATH": os.getcwd(), **os.environ, **case.env}

    def prepare() -> None:
        for descriptor in case.close:
            os.close(descriptor)
        if case.obeys_permissions:
            for capability in _CAPABILITIES:
                ctypes.CDLL(None).prctl(_DROP, capability, 0, 0, 0)

    began = time.monotonic()
    head = case.to == "|"
    with open(case.to, "w") if case.to and not head else open(os.devnull) as full:
        process = subprocess.Popen(
            [sys.executable, *program, *args],
            env={name: value for name, value in env.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=full if case.to and not head else subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=prepare,
        )
        if head and process.stdout:
            process.stdout.close()
            process.stdout = None
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            process.returncode = None
    texts = [(part or b"").decode("utf-8", "replace").replace("\x00", "") for part in (out, err)]
    return Outcome(args, process.returncode, *texts, time.monotonic() - began, case.name)
