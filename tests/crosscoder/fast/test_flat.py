"""Flat indices against the plain definition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from modeldiff.crosscoder.fast.flat import places_of, rows_and_columns


@given(
    rows=st.integers(0, 40),
    columns=st.sampled_from([1, 3, 8, 64]),
    share=st.sampled_from([0.0, 0.01, 0.05, 0.09, 0.2, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_places_of_few_and_of_many_true_ones(rows: int, columns: int, share: float, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    for view in (mask, mask.T):
        assert places_of(view).tolist() == [i for i, value in enumerate(view.flatten().tolist()) if value]


def test_rows_and_columns() -> None:
    rows_K, columns_K = rows_and_columns(torch.tensor([0, 6, 7, 20]), 7)
    assert rows_K.tolist() == [0, 0, 1, 2]
    assert columns_K.tolist() == [0, 6, 0, 6]
