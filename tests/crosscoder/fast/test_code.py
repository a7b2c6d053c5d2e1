"""The sparse products against dense ones with the same code: values, gradients, and empty corners."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.crosscoder.fast.code import decode_backward, decode_kept, encode_backward
from modeldiff.crosscoder.fast.entries import Kept
from modeldiff.crosscoder.products import decode_product, encode_product

PAIRS, WIDTH_A, WIDTH_B = 23, 5, 8


def some_entries(pairs: int, features: int, count: int, seed: int) -> torch.Tensor:
    order = torch.randperm(pairs * features, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


@given(
    pairs=st.integers(1, 20),
    features=st.integers(1, 15),
    share=st.floats(0, 1),
    cut=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_both_orders_hold_every_entry_once(pairs: int, features: int, share: float, cut: float, seed: int) -> None:
    flat_K = some_entries(pairs, features, int(share * pairs * features), seed)
    kept = Kept(flat_K, pairs, features)
    expected = sorted((i % features, i // features) for i in flat_K.tolist())
    assert list(zip(kept.feature_K.tolist(), kept.pair_K.tolist(), strict=True)) == expected
    assert torch.equal(kept.row_K * features + kept.column_K, flat_K)
    assert torch.equal((kept.pair_K * features + kept.feature_K)[kept.by_pair_K], flat_K)
    assert torch.equal(flat_K[kept.by_feature_K], kept.pair_K * features + kept.feature_K)
    assert kept.start_F1.diff().tolist() == torch.bincount(kept.feature_K, minlength=features).tolist()
    assert kept.start_B1.diff().tolist() == torch.bincount(kept.pair_K, minlength=pairs).tolist()
    seen = slice(int(cut * features), features)
    entries, bags = kept.of_features(seen)
    assert torch.equal(bags.bag_K + seen.start, kept.feature_K[entries])
    places, by_pair = kept.of_pairs(seen)
    assert (places is None) == (seen.start == 0)
    places = torch.arange(len(flat_K)) if places is None else places
    assert places.tolist() == sorted(kept.by_feature_K[entries].tolist())
    assert torch.equal(by_pair.index_K + seen.start, kept.column_K[places])
    assert torch.equal(by_pair.bag_K, kept.row_K[places])
    assert torch.equal(by_pair.start_G1.diff(), torch.bincount(by_pair.bag_K, minlength=pairs))


@pytest.mark.parametrize("sizes", [(3, 7, 2), (0, 9, 0), (4, 1, 0), (0, 1, 4)])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("count", [0, 1, 60, None])
def test_values_and_gradients_equal_the_dense_products(
    sizes: tuple[int, int, int], share: float, count: int | None
) -> None:
    n_a_only, n_shared, n_b_only = sizes
    n = sum(sizes)
    generator = torch.Generator().manual_seed(3)
    shapes = [(PAIRS, WIDTH_A), (PAIRS, WIDTH_B)]
    shapes += [(n_a_only + n_shared, WIDTH_A), (n_shared + n_b_only, WIDTH_B)] * 2 + [(n,)]  # type: ignore[list-item]
    x_a, x_b, *weights = (torch.randn(shape, generator=generator) for shape in shapes)
    goal_a, goal_b = torch.randn(PAIRS, WIDTH_A, generator=generator), torch.randn(PAIRS, WIDTH_B, generator=generator)
    kept = Kept(some_entries(PAIRS, n, PAIRS * n if count is None else min(count, PAIRS * n), 1), PAIRS, n)

    def run(sparse: bool) -> list[torch.Tensor]:
        leaves = [weight.clone().requires_grad_() for weight in weights]
        enc_a, enc_b, dec_a, dec_b, b = leaves
        pre_BF = encode_product(x_a, x_b, enc_a, enc_b, b, share=share, dtype=torch.float32)
        if sparse:
            f_K = pre_BF.detach()[kept.row_K, kept.column_K]
            for _ in range(2):  # the second time over the gradients of the first
                xhat = decode_kept(f_K, dec_a, dec_b, kept)
                g_K = decode_backward(2 * (xhat[0] - goal_a), 2 * (xhat[1] - goal_b), f_K, dec_a, dec_b, kept)
                encode_backward(g_K, x_a, x_b, enc_a, enc_b, b, kept, share=share)
        else:
            f_BF = pre_BF * kept.dense(torch.ones(len(kept.pair_K)))
            f_K = f_BF[kept.row_K, kept.column_K]
            xhat = decode_product(f_BF, dec_a, dec_b, dtype=torch.float32)
            ((xhat[0] - goal_a).square().sum() + (xhat[1] - goal_b).square().sum()).backward()
        return [f_K, *xhat, *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]

    for found, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
