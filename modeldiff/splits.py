"""Which of many things in order are read, and what is held out: one definition for all stages."""

from __future__ import annotations


def evenly_spread(total: int, count: int) -> list[int]:
    """Indices, ascending, of `count` of `total` things in order: the middle of each of as many equal shares; all of
    them where `count` is not less than `total`."""
    if count >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
