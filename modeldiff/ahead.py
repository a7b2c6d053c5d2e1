"""Work done one item ahead of the one that is being used, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """(item, make(item)) for each, in order; the next one is made while the caller uses this one.

    Worth it where `make` waits for the disk or is busy in numpy or torch, which let other threads run. An error of
    `make` is raised in its place of the order. At most one item is made that nobody asks for.
    """
    with ThreadPoolExecutor(1, "ahead") as worker:
        pending: tuple[Item, Future[Made]] | None = None
        for item in items:
            following = (item, worker.submit(make, item))
            if pending:
                yield pending[0], pending[1].result()
            pending = following
        if pending:
            yield pending[0], pending[1].result()
