"""Work done before it is needed, work for both models at the same time, and cores that several threads share."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from modeldiff.sides import SIDES

Item = TypeVar("Item")
Made = TypeVar("Made")


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefetched(
    make: Callable[[Item], Made], items: Iterable[Item], workers: int = 1, ahead: int | None = None
) -> Generator[tuple[Item, Made], None, None]:
    """(item, make(item)) for each, in order; the next `ahead` (default: `workers`) are being made, or are made, while
    the caller uses this one: for a `make` that waits for the disk, or is busy in numpy or torch, which let other
    threads run. An error of `make` is raised in its place of the order, and what was not begun then is not made."""
    with ThreadPoolExecutor(workers, "prefetch") as pool:
        begun = ((item, pool.submit(make, item)) for item in items)
        pending = deque(islice(begun, (ahead or workers) + 1))
        try:
            while pending:
                item, future = pending.popleft()
                yield item, future.result()
                pending.extend(islice(begun, 1))
        finally:
            for _, future in pending:
                future.cancel()


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


def by_side(make: Callable[[str], Made]) -> dict[str, Made]:
    """make("a") and make("b"), each in a thread of its own with half of the cores: for work in steps that cannot use
    several cores. An error of either is raised when both have ended."""
    with shared_cores(len(SIDES)), ThreadPoolExecutor(len(SIDES), "side") as workers:
        return dict(zip(SIDES, workers.map(make, SIDES), strict=True))
