"""What is worked out for each model by itself, for both at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from modeldiff.ahead import shared_cores
from modeldiff.workspace.plan import SIDES

Made = TypeVar("Made")


def by_side(make: Callable[[str], Made]) -> dict[str, Made]:
    """make("a") and make("b"), each in a thread of its own with half of the cores.

    Worth it where much of the work is in steps that cannot use several cores. An error of either is raised when both
    have ended.
    """
    with shared_cores(len(SIDES)), ThreadPoolExecutor(len(SIDES), "side") as workers:
        return dict(zip(SIDES, workers.map(make, SIDES), strict=True))
