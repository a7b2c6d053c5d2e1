"""The active entries of a code: both orders hold each once; products over them against dense ones."""

from __future__ import annotations

import mmap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.crosscoder.fast.sparse import Entries, OneProcess, SparseStep
from tests.crosscoder.dense import DenseStep
from tests.crosscoder.made import random_crosscoder

PAIRS = 23


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
    entries = Entries(flat_K, pairs, features)
    expected = sorted((i % features, i // features) for i in flat_K.tolist())
    bags = entries.bags
    assert list(zip(bags.bag_K.tolist(), bags.index_K.tolist(), strict=True)) == expected
    assert torch.equal(entries.row_K * features + entries.column_K, flat_K)
    assert torch.equal(flat_K[entries.by_feature_K], bags.index_K * features + bags.bag_K)
    seen = slice(int(cut * features), features)
    mine, part = bags.part(seen)
    assert torch.equal(part.bag_K + seen.start, bags.bag_K[mine])
    assert torch.equal(part.index_K, bags.index_K[mine])
    places, by_pair = entries.of_pairs(seen)
    places = torch.arange(len(flat_K))[places]
    assert places.tolist() == sorted(entries.by_feature_K[mine].tolist())
    assert torch.equal(by_pair.index_K + seen.start, entries.column_K[places])
    assert torch.equal(by_pair.bag_K, entries.row_K[places])


@pytest.mark.parametrize("features", [65_535, 65_536, 65_537, 200_000])
def test_the_order_by_feature_holds_where_numbers_need_more_than_16_bits(features: int) -> None:
    flat_K = torch.tensor([0, 7, features - 1, features + 7, 2 * features - 1, 2 * features])
    entries = Entries(flat_K, 3, features)
    assert entries.by_feature_K.tolist() == [0, 5, 1, 3, 2, 4]
    assert entries.bags.index_K.tolist() == [0, 2, 0, 1, 0, 1]
    assert entries.bags.start_G1[[0, 1, 7, 8, -2, -1]].tolist() == [0, 2, 2, 4, 4, 6]


@pytest.mark.parametrize("sizes", [(3, 7, 2), (0, 9, 0), (4, 1, 0), (0, 1, 4), (0, 0, 5)])
@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("count", [0, 1, 60, 10_000])
def test_a_step_equals_the_dense_one(sizes: tuple[int, int, int], combine: str, count: int) -> None:
    a, shared, b = sizes
    crosscoders = [random_crosscoder(n_a_only=a, n_shared=shared, n_b_only=b, k=1, combine=combine) for _ in range(2)]
    generator = torch.Generator().manual_seed(3)
    x, goal = ([torch.randn(PAIRS, width, generator=generator) for width in (6, 9)] for _ in range(2))
    steps = SparseStep(crosscoders[0], OneProcess()), DenseStep(crosscoders[1])
    found = []
    for step, crosscoder in zip(steps, crosscoders, strict=True):
        for _ in range(2):  # the second time over the gradients of the first
            done = step.forward(*x, count)
            step.backward(x, done, [2 * (xhat - wanted) for xhat, wanted in zip(done.xhat, goal, strict=True)])
        gradients = [parameter.grad for parameter in crosscoder.parameters()]
        found.append([done.f_K, *done.xhat, *step.decode(done.entries, done.f_K), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_a_system_without_large_pages_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(PAIRS, 6), torch.randn(PAIRS, 9)
    found = []
    for no_such_advice in (None, 1 << 20):
        if no_such_advice:
            monkeypatch.setattr(mmap, "MADV_HUGEPAGE", no_such_advice, raising=False)
        step = SparseStep(random_crosscoder(n_a_only=3, n_shared=7, n_b_only=2, k=1), OneProcess())
        done = step.forward(*x, 60)
        found.append([done.f_K, *done.xhat])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
