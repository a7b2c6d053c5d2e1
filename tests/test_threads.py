"""Work in threads: what is made before it is needed, and what is made for both models at the same time."""

from __future__ import annotations

import threading

import pytest
import torch

from modeldiff.threads import by_side, prefetched


def test_the_next_one_is_made_while_this_one_is_used() -> None:
    made = [threading.Event() for _ in range(3)]
    for number, _ in prefetched(lambda n: made[n].set(), range(3)):
        if number < 2:
            assert made[number + 1].wait(60), "the next one was not begun"
        assert not any(one.is_set() for one in made[number + 2 :]), "more than one ahead"
    assert list(prefetched(str, [])) == []


def test_more_are_made_ahead_by_one_thread_and_none_after_the_end() -> None:
    made = [threading.Event() for _ in range(5)]
    begun = prefetched(lambda n: made[n].set(), range(5), ahead=2)
    next(begun)
    assert made[2].wait(60), "the second one after it was not begun"
    begun.close()
    assert not any(one.is_set() for one in made[3:])


def test_an_error_is_raised_in_its_place() -> None:
    pairs = prefetched(lambda n: 2 // (2 - n), range(5))
    assert [next(pairs), next(pairs)] == [(0, 1), (1, 2)]
    with pytest.raises(ZeroDivisionError):
        next(pairs)


def test_two_are_made_at_the_same_time_and_come_in_order() -> None:
    meeting = threading.Barrier(2, timeout=60)

    def make(n: int) -> int:
        meeting.wait()  # would time out if one were made after the other
        return -n

    assert list(prefetched(make, range(6), workers=2)) == [(n, -n) for n in range(6)]


def test_both_are_made_at_the_same_time_with_half_of_the_cores() -> None:
    meeting = threading.Barrier(2, timeout=60)
    threads = torch.get_num_threads()

    def make(side: str) -> tuple[str, int]:
        meeting.wait()  # would time out if one waited for the other
        return side.upper(), torch.get_num_threads()

    half = max(1, threads // 2)
    assert by_side(make) == {"a": ("A", half), "b": ("B", half)}
    assert torch.get_num_threads() == threads
    with pytest.raises(KeyError):
        by_side(lambda side: {"a": 1}[side])
    assert torch.get_num_threads() == threads
