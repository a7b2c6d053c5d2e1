"""Exact quantiles of more numbers than fit into memory: their order is that of their bits, which are counted.

The bits of floats that are not negative, read as whole numbers, rise with them. A first reading counts the upper half
of the bits and tells in which of 65,536 bins each number sought lies; a second one counts the lower half in those bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_HALF_BITS = 16
_BINS = 1 << _HALF_BITS

Parts = Callable[[], Iterable[NDArray[np.float32]]]


def quantiles(parts: Parts, wanted: Sequence[float]) -> list[float]:
    """What `np.quantile` gives for all the numbers together.

    Args:
        parts: gives the numbers in parts, float32 and not negative; called twice.
        wanted: quantiles from 0 to 1, interpolated linearly.
    """
    upper = np.zeros(_BINS, np.int64)
    for numbers in parts():
        upper += np.bincount(numbers.view(np.uint32) >> _HALF_BITS, minlength=_BINS)
    last = int(upper.sum()) - 1
    places = [last * q for q in wanted]
    ranks = sorted({rank for place in places for rank in (int(place), min(int(place) + 1, last))})
    value = dict(zip(ranks, _at_ranks(parts, upper, ranks), strict=True))
    return [_between(value[int(place)], value[min(int(place) + 1, last)], place - int(place)) for place in places]


def _at_ranks(parts: Parts, upper: NDArray[np.int64], ranks: list[int]) -> list[float]:
    """The numbers at these places of the sorted order, counted from 0."""
    below = np.concatenate([[0], np.cumsum(upper)])
    bins = np.searchsorted(below, ranks, side="right") - 1
    lower = {int(number): np.zeros(_BINS, np.int64) for number in bins}
    for numbers in parts():
        bits = numbers.view(np.uint32)
        of_bin = bits >> _HALF_BITS
        for number, counts in lower.items():
            counts += np.bincount(bits[of_bin == number] & (_BINS - 1), minlength=_BINS)
    found = []
    for rank, number in zip(ranks, bins.tolist(), strict=True):
        low = int(np.searchsorted(np.cumsum(lower[number]), rank - below[number], side="right"))
        found.append(float(np.uint32((number << _HALF_BITS) | low).view(np.float32)))
    return found


def _between(low: float, high: float, share: float) -> float:
    """As numpy rounds it: from the nearer end."""
    step = high - low
    return high - step * (1 - share) if share >= 0.5 else low + step * share
