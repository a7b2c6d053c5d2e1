"""Lists of different lengths in flat arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modeldiff.features.ragged as ragged_module
from modeldiff.features.ragged import Ragged, ranges

lists = st.lists(st.lists(st.integers(0, 99), max_size=7), max_size=12)


@given(rows=lists, data=st.data(), part=st.sampled_from([1, 5, 1 << 17]))
def test_taken_lists_are_whole_and_in_the_asked_order(rows: list[list[int]], data: st.DataObject, part: int) -> None:
    made = Ragged.of([{"x": np.array(row, np.int64)} for row in rows], {"x": np.int64})
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=15)) if rows else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged_module, "_PART", part)
        taken = made.take(np.array(order, np.int64))
    assert [taken.row(i)["x"].tolist() for i in range(len(taken))] == [rows[i] for i in order]


@given(bounds=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=10))
def test_ranges_one_after_the_other(bounds: list[tuple[int, int]]) -> None:
    start_E = np.array([start for start, _ in bounds], np.int64)
    index_V, number_V = ranges(start_E, start_E + np.array([length for _, length in bounds], np.int64))
    expected = [(i, start + j) for i, (start, length) in enumerate(bounds) for j in range(length)]
    assert list(zip(index_V.tolist(), number_V.tolist(), strict=True)) == expected
