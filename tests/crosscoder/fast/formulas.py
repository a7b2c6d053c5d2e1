"""Bags for tests, and what sums and products over them are by their formulas, densely and in float64.

Legend: K entries, G bags, G1 = G + 1, N rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modeldiff.crosscoder.fast.sparse import Bags


def made_bags(lengths: Sequence[int], rows: int, seed: int = 0) -> Bags:
    """Bags with so many entries each, of random rows in random order; a row may be in a bag more than once."""
    length_G = torch.tensor(lengths, dtype=torch.int64)
    random = torch.Generator().manual_seed(seed)
    return Bags(
        index_K=torch.randint(rows, (int(length_G.sum()),), generator=random),
        start_G1=torch.cat([torch.zeros(1, dtype=torch.int64), length_G.cumsum(0)]),
    )


def sum_of(rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor) -> torch.Tensor:
    """(G, D): a dense matrix of weights times the rows."""
    weight_GN = torch.zeros(len(bags), len(rows_ND), dtype=torch.float64)
    weight_GN.index_put_((bags.bag_K, bags.index_K), weight_K.double(), accumulate=True)
    return weight_GN @ rows_ND.double()


def dot_of(left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(K,): all products, then those of the entries."""
    return (left_GD.double() @ rows_ND.double().T)[bags.bag_K, bags.index_K]


def assert_sum(found_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor) -> None:
    """Right within what float32 can lose, which grows with the terms' sizes and not with the sum's."""
    assert found_GD.dtype == torch.float32
    size_GD = sum_of(rows_ND.abs(), bags, weight_K.abs())
    assert found_GD.shape == size_GD.shape
    assert bool(((found_GD - sum_of(rows_ND, bags, weight_K)).abs() <= 1e-5 * size_GD).all())


def assert_dot(found_K: torch.Tensor, left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags) -> None:
    """Likewise."""
    assert found_K.dtype == torch.float32
    size_K = dot_of(left_GD.abs(), rows_ND.abs(), bags)
    assert found_K.shape == size_K.shape
    assert bool(((found_K - dot_of(left_GD, rows_ND, bags)).abs() <= 1e-5 * size_K).all())
