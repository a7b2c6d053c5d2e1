"""The products over the partition and their gradients, against plain autograd and against differences."""

from __future__ import annotations

import pytest
import torch
from modeldiff.crosscoder.fast.products import decode_product, encode_product, product_into


def inputs(n_a: int, n_shared: int, n_b: int) -> list[torch.Tensor]:
    """x_a, x_b, w_a, w_b, b, f: float64, wanting gradients."""
    torch.manual_seed(0)
    n_features = n_a + n_shared + n_b
    shapes = [(4, 3), (4, 5), (n_a + n_shared, 3), (n_shared + n_b, 5), (n_features,), (4, n_features)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("partition", [(2, 3, 1), (0, 4, 0), (1, 2, 0), (0, 2, 3), (2, 0, 2)])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_values_and_gradients(partition: tuple[int, int, int], share: float) -> None:
    n_a, n_shared, n_b = partition
    x_a, x_b, w_a, w_b, b, f = inputs(*partition)
    mixed = torch.full((n_a + n_shared + n_b,), share, dtype=torch.float64)
    mixed[:n_a] = mixed[n_a + n_shared :] = 1
    nothing_a, nothing_b = x_a.new_zeros(n_b, 3), x_a.new_zeros(n_a, 5)
    plain = (x_a @ torch.cat([w_a, nothing_a]).T + x_b @ torch.cat([nothing_b, w_b]).T) * mixed + b
    torch.testing.assert_close(encode_product(x_a, x_b, w_a, w_b, b, share=share, dtype=torch.float64), plain)
    found_a, found_b = decode_product(f, w_a, w_b, dtype=torch.float64)
    torch.testing.assert_close(found_a, f[:, : n_a + n_shared] @ w_a)
    torch.testing.assert_close(found_b, f[:, n_a:] @ w_b)
    assert torch.autograd.gradcheck(
        lambda *t: encode_product(*t, share=share, dtype=t[0].dtype), (x_a, x_b, w_a, w_b, b)
    )
    assert torch.autograd.gradcheck(lambda *t: decode_product(*t, dtype=t[0].dtype), (f, w_a, w_b))


@pytest.mark.parametrize("partition", [(3, 2900, 70), (0, 1537, 0)])
def test_many_shared_features_are_summed_part_by_part(partition: tuple[int, int, int]) -> None:
    """Thousands of them come in several parts, of which the last one is smaller."""
    n_a, _, n_b = partition
    with torch.no_grad():
        x_a, x_b, w_a, w_b, *_ = inputs(*partition)
        out = torch.full((4, sum(partition)), torch.nan, dtype=torch.float64)
        assert product_into(out, x_a, x_b, w_a, w_b, 1.0) is out
        nothing_a, nothing_b = x_a.new_zeros(n_b, 3), x_a.new_zeros(n_a, 5)
        torch.testing.assert_close(out, x_a @ torch.cat([w_a, nothing_a]).T + x_b @ torch.cat([nothing_b, w_b]).T)
