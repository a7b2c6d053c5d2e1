"""The null of the pass: a permutation without memory of all pairs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.features.measures.stitch.scan import Permuted


@given(chunks=st.lists(st.integers(0, 40), max_size=12), shift=st.integers(2, 30))
def test_it_is_a_permutation_that_moves_every_pair_far(chunks: list[int], shift: int) -> None:
    n = sum(chunks)
    permuted = Permuted(shift)
    found, first = [], 0
    for chunk in chunks:
        rows = torch.arange(first, first + chunk)[:, None]
        found.append(permuted.add(rows, rows))
        first += chunk
    rest = permuted.rest(n)
    assert (rest is None) == (n == 0)
    found += [rest] if rest else []
    a = [row for side, _ in found for row in side[:, 0].tolist()]
    b = [row for _, side in found for row in side[:, 0].tolist()]
    assert sorted(a) == sorted(b) == list(range(n))
    assert all(abs(i - j) >= min(n, shift) // 2 for i, j in zip(a, b, strict=True))
