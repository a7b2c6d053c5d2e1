"""Bags for tests, and what sums and products over them are by their formulas, densely and in float64.

Legend: K entries, G bags, G1 = G + 1, N rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modeldiff.crosscoder.fast.sparse import Bags

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Bags]
"""Left (G, D), rows (N, D), weights (K) and bags."""


def made_bags(lengths: Sequence[int], rows: int, seed: int = 0) -> Bags:
    """Bags with so many entries each, of random rows in random order; a row may be in a bag more than once."""
    length_G = torch.tensor(lengths, dtype=torch.int64)
    random = torch.Generator().manual_seed(seed)
    return Bags(
        index_K=torch.randint(rows, (int(length_G.sum()),), generator=random),
        start_G1=torch.cat([torch.zeros(1, dtype=torch.int64), length_G.cumsum(0)]),
    )


def made_case(
    lengths: Sequence[int], rows: int, width: int, seed: int = 0, dtypes: Sequence[torch.dtype] = (torch.float32,) * 2
) -> Case:
    """Random bags and matrices; the types are those of left and rows."""
    random = torch.Generator().manual_seed(seed + width)
    left_GD = torch.randn(len(lengths), width, generator=random).to(dtypes[0])
    rows_ND = torch.randn(rows, width, generator=random).to(dtypes[1])
    return left_GD, rows_ND, torch.randn(sum(lengths), generator=random), made_bags(lengths, rows, seed)


def columns(case: Case, first: int, last: int) -> Case:
    """Left and rows are columns of wider matrices."""
    left_GD, rows_ND, weight_K, bags = case
    return left_GD[:, first:last], rows_ND[:, first:last], weight_K, bags


def assert_right(sum_GD: torch.Tensor, dot_K: torch.Tensor, case: Case) -> None:
    """A sum and products are right within what float32 can lose, which grows with the sizes of the terms and not with
    that of the result."""
    left_GD, rows_ND, weight_K, bags = case
    of_sizes = (left_GD.abs(), rows_ND.abs(), weight_K.abs(), bags)
    for found, formula in ((sum_GD, _sum), (dot_K, _dot)):
        expected, size = formula(*case), formula(*of_sizes)
        assert (found.dtype, found.shape) == (torch.float32, size.shape)
        assert bool(((found - expected).abs() <= 1e-5 * size).all())


def _sum(_left: torch.Tensor, rows_ND: torch.Tensor, weight_K: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(G, D): a dense matrix of weights times the rows."""
    weight_GN = torch.zeros(len(bags), len(rows_ND), dtype=torch.float64)
    weight_GN.index_put_((bags.bag_K, bags.index_K), weight_K.double(), accumulate=True)
    return weight_GN @ rows_ND.double()


def _dot(left_GD: torch.Tensor, rows_ND: torch.Tensor, _weight: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(K,): all products, then those of the entries."""
    return (left_GD.double() @ rows_ND.double().T)[bags.bag_K, bags.index_K]
