"""Work in other processes, for what holds the interpreter's lock.

They are not those of multiprocessing: these begin by running the caller's script once more, where it has no
`if __name__ == "__main__"`; nor forks, which torch and CUDA do not survive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from modeldiff.console import mute
from modeldiff.errors import MachineError

Item = TypeVar("Item")
Made = TypeVar("Made")

_CODE = "import sys; sys.path[:] = sys.argv[2:]; from modeldiff.processes import _serve; _serve(int(sys.argv[1]))"
# Each of them uses one core.
_ONE_CORE = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def in_processes(work: Callable[[Item], Made], count: int) -> Iterator[Callable[[Item], Made]]:
    """Inside, the function given does `work`, a function or object that can be pickled, in one of `count` other
    processes: call it in as many threads. What `work` raises, it raises; and MachineError when a process is lost. The
    processes end with the block, or when this process ends, however it does."""
    idle = SimpleQueue[Connection]()
    with ExitStack() as begun:
        for _ in range(count):
            ours, theirs = Pipe()
            with theirs:
                end = theirs.fileno()
                command = [sys.executable, "-c", _CODE, str(end), *sys.path]
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, env={**os.environ, **_ONE_CORE}, pass_fds=[end]
                )
            begun.callback(process.wait)
            begun.callback(process.kill)
            idle.put(begun.enter_context(ours))
            ours.send(work)

        def call(item: Item) -> Made:
            connection = idle.get()
            try:
                connection.send(item)
                made, error = connection.recv()
            except (EOFError, OSError):
                raise MachineError(
                    "another process of this command was lost, perhaps because memory was short: the same command "
                    "continues"
                ) from None
            finally:
                idle.put(connection)
            if error is not None:
                raise error
            return made

        yield call


def _serve(end: int) -> None:
    """What such a process does. It never sees Ctrl-C: its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mute()
    # The parent has closed its end, or is gone.
    with suppress(EOFError, OSError), Connection(end) as connection:
        work = connection.recv()
        while True:
            connection.send(_done(work, connection.recv()))


def _done(work: Callable[[Any], Any], item: Any) -> tuple[Any, Exception | None]:
    try:
        return work(item), None
    except Exception as error:
        return None, error
