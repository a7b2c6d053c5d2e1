"""Memory that stays: the same one again, matrices inside a larger one apart from each other, and room that grows."""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder.fast.rooms import Rooms, lasting

CPU = torch.device("cpu")


def span(x: torch.Tensor) -> tuple[int, int]:
    """Where its memory begins and ends."""
    return x.data_ptr(), x.data_ptr() + x.nbytes


def test_the_same_memory_is_given_again() -> None:
    rooms = Rooms(rows=6)
    first = rooms.of("x", 5, 4, torch.float32, CPU)
    assert first.shape == (5, 4)
    assert rooms.of("x", 6, 4, torch.float32, CPU).data_ptr() == first.data_ptr()
    assert rooms.of("x", 2, 3, torch.float32, CPU).data_ptr() == first.data_ptr()
    assert rooms.of("y", 5, 4, torch.float32, CPU).data_ptr() != first.data_ptr()


@pytest.mark.parametrize(("rows", "dtype"), [(9, torch.float32), (5, torch.float64)])
def test_what_does_not_fit_gets_new_memory(rows: int, dtype: torch.dtype) -> None:
    rooms = Rooms(rows=6)
    rooms.of("x", 5, 4, torch.float32, CPU)
    found = rooms.of("x", rows, 4, dtype, CPU)
    assert found.shape == (rows, 4)
    assert found.dtype == dtype
    found.fill_(3)
    assert rooms.of("x", rows, 4, dtype, CPU).eq(3).all()


def test_matrices_inside_a_larger_one_keep_apart() -> None:
    rooms = Rooms(rows=8)
    outer = rooms.of("outer", 7, 40, torch.float32, CPU)
    inner = [rooms.inside("outer", name, torch.empty(7, columns)) for name, columns in (("a", 5), ("b", 11))]
    begin, end = span(outer)
    assert all(begin <= span(one)[0] and span(one)[1] <= end + 40 * 4 for one in inner)
    assert span(inner[0])[1] <= span(inner[1])[0]
    for number, one in enumerate(inner):
        one.fill_(number)
    assert rooms.inside("outer", "a", torch.empty(7, 5)).eq(0).all()
    assert rooms.inside("outer", "b", torch.empty(7, 11)).eq(1).all()
    larger = rooms.inside("outer", "a", torch.empty(8, 5))
    assert span(larger)[1] <= span(inner[1])[0], "as many rows as there is room for at least"


def test_one_that_grows_leaves_the_others_alone() -> None:
    rooms = Rooms()  # room for no more rows than are asked for
    rooms.of("outer", 9, 100, torch.float32, CPU)
    for rows in (3, 5, 4, 7):
        a, b = (rooms.inside("outer", name, torch.empty(rows, 5)) for name in "ab")
        assert span(a)[1] <= span(b)[0] or span(b)[1] <= span(a)[0]


def test_what_is_too_large_for_the_inside_gets_memory_of_its_own() -> None:
    rooms = Rooms()
    outer = rooms.of("outer", 4, 4, torch.float32, CPU)
    found = rooms.inside("outer", "a", torch.empty(4, 5))
    assert found.shape == (4, 5)
    assert span(found)[1] <= span(outer)[0] or span(found)[0] >= span(outer)[1]


def test_the_inside_follows_when_the_larger_one_moves() -> None:
    rooms = Rooms()
    rooms.of("outer", 4, 8, torch.float32, CPU)
    rooms.inside("outer", "a", torch.empty(4, 5))
    outer = rooms.of("outer", 400, 8, torch.float32, CPU)
    begin, end = span(outer)
    first, last = span(rooms.inside("outer", "a", torch.empty(4, 5)))
    assert begin <= first
    assert last <= end


@pytest.mark.parametrize("shape", [(3, 2), (1 << 10, 1 << 9), (1 << 19,), ()])
def test_lasting_memory_is_ordinary_memory(shape: tuple[int, ...]) -> None:
    x = lasting(shape, torch.float32, CPU)
    assert x.shape == shape
    assert x.is_contiguous()
    x.fill_(2.5)
    assert float(x.sum()) == 2.5 * x.numel()
