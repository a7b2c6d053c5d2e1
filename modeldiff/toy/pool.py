"""Cells in parallel processes: each takes a cell when it is free, reports its steps, and ends when its parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from modeldiff.errors import MachineError
from modeldiff.toy.cell import CellSpec

Compute = Callable[[CellSpec, Callable[[int, int], None] | None], dict[str, Any]]
"""`run_cell`, or what stands in for it. In more than one process it must be a function of a module."""
OnStep = Callable[[int, int, int], None]
"""Called with the number of the cell in its list, the steps done, and all its steps."""
OnDone = Callable[[int, dict[str, Any]], None]
"""Called with the number of the cell and its result."""

# A worker tells its steps this often; the picture moves no faster.
_REPORT_SECONDS = 0.3
# What a worker gets to end by itself before it is killed.
_GRACE_SECONDS = 2.0


def compute_all(
    cells: Sequence[CellSpec], compute: Compute, *, jobs: int, threads: int, on_step: OnStep, on_done: OnDone
) -> None:
    """Compute every cell, in this order; results arrive in the order in which they are ready.

    One job runs in this process. When anything goes wrong, or Ctrl-C is pressed, the other processes end at once.

    Raises:
        MachineError: not enough memory; a process was killed.
        Exception: whatever a cell raised, as itself.
    """
    with _memory_errors():
        if jobs == 1:
            _one_by_one(cells, compute, threads, on_step, on_done)
        else:
            _Pool(compute, jobs, threads).run(cells, on_step, on_done)


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise MachineError(
            "not enough memory for the cells that run at the same time: use fewer --jobs or a smaller --batch; "
            "the same command continues with the cells that are missing"
        ) from None


def _one_by_one(cells: Sequence[CellSpec], compute: Compute, threads: int, on_step: OnStep, on_done: OnDone) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number, cell in enumerate(cells):
            on_done(number, compute(cell, _numbered(number, on_step)))
    finally:
        torch.set_num_threads(before)


def _numbered(number: int, on_step: OnStep) -> Callable[[int, int], None]:
    return lambda done, total: on_step(number, done, total)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    number: int = -1
    """The cell it works on."""


class _Pool:
    """Processes that are started anew, not forked: torch and CUDA do not survive a fork."""

    def __init__(self, compute: Compute, jobs: int, threads: int) -> None:
        self._compute, self._jobs, self._threads = compute, jobs, threads
        self._workers: list[_Worker] = []

    def run(self, cells: Sequence[CellSpec], on_step: OnStep, on_done: OnDone) -> None:
        waiting = iter(enumerate(cells))
        missing = len(cells)
        try:
            with _interrupts_ignored():
                self._workers = [self._started() for _ in range(min(self._jobs, len(cells)))]
            for worker in self._workers:
                self._give(worker, waiting)
            while missing:
                by_connection = {worker.connection: worker for worker in self._workers}
                for connection in wait(list(by_connection)):
                    worker = by_connection[connection]  # type: ignore[index]
                    message = self._received(worker)
                    if message[0] == "step":
                        on_step(worker.number, message[1], message[2])
                    elif message[0] == "failed":
                        raise message[1]
                    else:
                        on_done(worker.number, message[1])
                        missing -= 1
                        self._give(worker, waiting)
        finally:
            self._end()

    def _started(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._compute, self._threads), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        return _Worker(process, ours)

    def _give(self, worker: _Worker, waiting: Iterator[tuple[int, CellSpec]]) -> None:
        """The next cell, if there is one; a process without work waits for the others' end."""
        for number, cell in waiting:
            worker.number = number
            with suppress(BrokenPipeError):  # said by the next read
                worker.connection.send(cell)
            return

    def _received(self, worker: _Worker) -> tuple[Any, ...]:
        try:
            message: tuple[Any, ...] = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(_GRACE_SECONDS)
            raise MachineError(
                f"a process that computed cells ended (exit code {worker.process.exitcode}): if memory was short, use "
                "fewer --jobs; a script that calls this needs `if __name__ == '__main__'`, or --jobs 1"
            ) from None
        return message

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_GRACE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers = []


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, not even while they import: their parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(connection: Connection, compute: Compute, threads: int) -> None:
    """The life of a worker process: cells come in, steps and results go out."""
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent was killed
        while True:
            cell = connection.recv()
            try:
                result = compute(cell, _reporter(connection))
            except Exception as error:
                error.add_note(traceback.format_exc())  # where it happened, which the parent cannot see
                connection.send(("failed", error))
                return
            connection.send(("done", result))


def _reporter(connection: Connection) -> Callable[[int, int], None]:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            connection.send(("step", done, total))

    return report


def _end_with_parent() -> None:
    """A parent that was killed leaves nobody behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
