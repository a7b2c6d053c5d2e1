"""Both models at the same time: each answer in its place, errors not lost, and the cores given back."""

from __future__ import annotations

import threading

import pytest
import torch

from modeldiff.sides import by_side


def test_both_are_made_at_the_same_time_with_half_of_the_cores() -> None:
    meeting = threading.Barrier(2, timeout=60)
    threads = torch.get_num_threads()

    def make(side: str) -> tuple[str, int]:
        meeting.wait()  # would time out if one waited for the other
        return side.upper(), torch.get_num_threads()

    half = max(1, threads // 2)
    assert by_side(make) == {"a": ("A", half), "b": ("B", half)}
    assert torch.get_num_threads() == threads


def test_an_error_of_one_is_raised() -> None:
    threads = torch.get_num_threads()

    def make(side: str) -> str:
        if side == "b":
            raise ZeroDivisionError
        return side

    with pytest.raises(ZeroDivisionError):
        by_side(make)
    assert torch.get_num_threads() == threads
