"""The encoder's product for a GPU, by its formula in float64."""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder.fast.product import multiply_side_by_side_into
from tests.crosscoder.dense import dense_pre
from tests.crosscoder.made import random_crosscoder


@pytest.mark.parametrize("sizes", [(3, 7, 2), (0, 9, 0), (4, 0, 3), (0, 1, 4)])
@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_the_product_is_rounded_once(sizes: tuple[int, int, int], combine: str) -> None:
    a, shared, b = sizes
    crosscoder = random_crosscoder(n_a_only=a, n_shared=shared, n_b_only=b, k=1, combine=combine)
    crosscoder.b_enc.data.zero_()
    crosscoder.matmul_dtype = torch.bfloat16
    x = [torch.randn(23, width, generator=torch.Generator().manual_seed(width)).bfloat16() for width in (6, 9)]
    out_BF = torch.full((23, a + shared + b), torch.nan)
    multiply_side_by_side_into(out_BF, x[0].float(), x[1].float(), crosscoder)
    for parameter in crosscoder.parameters():
        parameter.data = parameter.data.bfloat16().double()
    expected_BF = dense_pre(crosscoder, x[0].double(), x[1].double())
    torch.testing.assert_close(out_BF.double(), expected_BF, rtol=2**-8, atol=1e-6)
