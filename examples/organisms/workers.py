"""Tasks done by worker processes that may fail: the other tasks go on, and a worker that failed is replaced."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

# A worker that computes on a GPU keeps little to the CPU; more threads than cores only cost.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_tasks(
    tasks: Sequence[Any], work: Callable[[Any], bool], jobs: int, threads: int, failed: Callable[[Any, str], None]
) -> None:
    """Hand every task to one of `jobs` processes.

    Args:
        work: of a module's top level; returns whether the process is still sound.
        threads: that a worker may use.
        failed: told of a task whose process died, or which raised, with the reason.
    """
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)), TOKENIZERS_PARALLELISM="false")
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    hands = [threading.Thread(target=_hand, args=(waiting, work, threads, failed)) for _ in range(jobs)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()


def _hand(
    waiting: queue.SimpleQueue[Any], work: Callable[[Any], bool], threads: int, failed: Callable[[Any, str], None]
) -> None:
    """One worker after the other, until nothing is waiting."""
    context = get_context("spawn")
    process: Any = None
    while True:
        try:
            task = waiting.get_nowait()
        except queue.Empty:
            break
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
            process.start()
            theirs.close()
        try:
            ours.send(task)
            sound, error = ours.recv()
        except (EOFError, OSError):
            process.join()
            sound, error = False, f"the process ended with exit code {process.exitcode}"
        if error:
            failed(task, error)
        if not sound:
            ours.close()
            process.join()
            process = None
    if process is not None:
        ours.close()
        process.join()


def _serve(connection: Connection, work: Callable[[Any], bool], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            sound, error = work(task), ""
        except Exception:
            sound, error = False, traceback.format_exc(limit=-4)
        connection.send((sound, error))
        if not sound:  # what broke once (a GPU's context, say) may break all that follows
            return


def _end_with_parent() -> None:
    """A command that is killed leaves no process behind that goes on with its work."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
