"""What is worked out for each model by itself, for both at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from modeldiff.workspace.plan import SIDES

Made = TypeVar("Made")


def by_side(make: Callable[[str], Made]) -> dict[str, Made]:
    """make("a") and make("b"), each in a thread of its own with half of the cores.

    Worth it where much of the work is in steps that cannot use several cores. An error of either is raised when both
    have ended.
    """
    with _shared_cores(len(SIDES)), ThreadPoolExecutor(len(SIDES), "side") as workers:
        return dict(zip(SIDES, workers.map(make, SIDES), strict=True))


@contextmanager
def _shared_cores(parts: int) -> Iterator[None]:
    """torch and numpy's matrix products take their share of the cores in every thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // parts))
    try:
        with threadpool_limits(max(1, threads // parts), user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
