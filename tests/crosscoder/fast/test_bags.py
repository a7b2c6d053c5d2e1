import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.crosscoder import fast as kernels
from modeldiff.crosscoder.fast import sparse as module
from modeldiff.crosscoder.fast.sparse import Bags, bag_dot, bag_sum
from tests.crosscoder.fast.formulas import assert_dot, assert_sum, made_bags

TRITON = "modeldiff.crosscoder.fast.triton_bags"
lengths = st.lists(st.integers(0, 12), min_size=1, max_size=8)


def drawn(bags: Bags, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left (G, D), rows (N, D), weights (K)."""
    random = torch.Generator().manual_seed(1)
    return (
        torch.randn(len(bags), width, generator=random),
        torch.randn(rows, width, generator=random),
        torch.randn(len(bags.index_K), generator=random),
    )


@given(lengths, st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_sums_and_products_are_those_of_the_dense_formulas(
    lengths: list[int], rows: int, width: int, seed: int
) -> None:
    bags = made_bags(lengths, rows, seed)
    left_GD, rows_ND, weight_K = drawn(bags, rows, width + 4)
    for columns in (slice(None), slice(2, width + 2)):  # rows may be columns of a wider matrix
        left, x = left_GD[:, columns], rows_ND[:, columns]
        assert_sum(bag_sum(x, bags, weight_K), x, bags, weight_K)
        assert_dot(bag_dot(left, x, bags), left, x, bags)


def test_the_cpu_needs_no_triton() -> None:
    code = """
import sys, torch
from modeldiff.crosscoder.fast.sparse import Bags, bag_dot, bag_sum
zero = torch.zeros(1, dtype=torch.int64)
bags = Bags(zero, torch.tensor([0, 1]))
bag_sum(torch.ones(1, 2), bags, torch.ones(1)), bag_dot(torch.ones(1, 2), torch.ones(1, 2), bags)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- which kernels run on a GPU ---------------------------------------------------------------------------------------


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Bags]]:
    """Left, rows, weights and bags, on a machine where nothing is known of kernels yet."""
    monkeypatch.delenv("MODELDIFF_KERNELS", raising=False)
    monkeypatch.delattr(kernels, "triton_bags", raising=False)
    module._kernels.cache_clear()
    bags = made_bags([2, 3], 4)
    left_GD, rows_ND, weight_K = (tensor.as_subclass(OnGpu) for tensor in drawn(bags, 4, 5))
    yield left_GD, rows_ND, weight_K, bags
    module._kernels.cache_clear()


@pytest.mark.parametrize("how", ["triton", "torch asked for", "no triton"])
def test_a_gpu_uses_triton_where_it_can(how: str, on_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = SimpleNamespace(bag_sum=lambda *_, **__: "triton's sum", bag_dot=lambda *_: "triton's dot")
    monkeypatch.setitem(sys.modules, TRITON, None if how == "no triton" else answers)
    if how != "no triton":
        monkeypatch.setattr(kernels, "triton_bags", answers, raising=False)
    if how == "torch asked for":
        monkeypatch.setenv("MODELDIFF_KERNELS", "torch")
    left_GD, rows_ND, weight_K, bags = on_gpu
    found = bag_sum(rows_ND, bags, weight_K), bag_dot(left_GD, rows_ND, bags)
    if how == "triton":
        assert found == ("triton's sum", "triton's dot")
    else:
        assert_sum(found[0], rows_ND, bags, weight_K)
        assert_dot(found[1], left_GD, rows_ND, bags)
