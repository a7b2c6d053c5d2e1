"""Work done ahead of what is being used, in threads of its own, and cores that several threads share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item], workers: int = 1) -> Iterator[tuple[Item, Made]]:
    """(item, make(item)) for each, in order; the next `workers` are being made while the caller uses this one.

    Worth it where `make` waits for the disk or is busy in numpy or torch, which let other threads run. An error of
    `make` is raised in its place of the order. At most `workers` items are made that nobody asks for.
    """
    pending: deque[tuple[Item, Future[Made]]] = deque()
    with ThreadPoolExecutor(workers, "ahead") as pool:
        for item in items:
            pending.append((item, pool.submit(make, item)))
            if len(pending) > workers:
                yield _result(pending)
        while pending:
            yield _result(pending)


def _result(pending: deque[tuple[Item, Future[Made]]]) -> tuple[Item, Made]:
    item, future = pending.popleft()
    return item, future.result()


@contextmanager
def shared_cores(parts: int) -> Iterator[None]:
    """Threads that begin in here each take their share of the cores for what torch and numpy's matrix products do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // parts))
    try:
        with threadpool_limits(max(1, threads // parts), user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
