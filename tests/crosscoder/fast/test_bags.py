"""Sums and products over bags: by torch on the CPU, by Triton's kernels on a GPU that has them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.crosscoder import fast as kernels
from modeldiff.crosscoder.fast import sparse as module
from modeldiff.crosscoder.fast.sparse import bag_dot, bag_sum
from tests.crosscoder.fast.formulas import Case, assert_right, columns, made_case

ROOT = Path(__file__).parents[3]
TRITON = "modeldiff.crosscoder.fast.triton_bags"


def check(case: Case) -> None:
    left_GD, rows_ND, weight_K, bags = case
    assert_right(bag_sum(rows_ND, bags, weight_K), bag_dot(left_GD, rows_ND, bags), case)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_sums_and_products_are_those_of_the_dense_formulas(
    lengths: list[int], rows: int, width: int, seed: int
) -> None:
    case = made_case(lengths, rows, width + 4, seed)
    check(case)
    check(columns(case, 2, width + 2))


def test_the_cpu_needs_no_triton() -> None:
    code = "import sys; from tests.crosscoder.fast import test_bags as tests; tests.check(tests.made_case([2], 3, 4))"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'triton' not in sys.modules"], cwd=ROOT, check=True)


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    """A case on a machine where nothing is known of kernels yet."""
    monkeypatch.delenv("MODELDIFF_KERNELS", raising=False)
    monkeypatch.delattr(kernels, "triton_bags", raising=False)
    module._kernels.cache_clear()
    *tensors, bags = made_case([2, 3], 4, 5)
    yield (*(tensor.as_subclass(OnGpu) for tensor in tensors), bags)
    module._kernels.cache_clear()


@pytest.mark.parametrize("how", ["triton", "torch asked for", "no triton"])
def test_a_gpu_uses_triton_where_it_can(how: str, on_gpu: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = SimpleNamespace(bag_sum=lambda *_, **__: "triton's sum", bag_dot=lambda *_: "triton's dot")
    monkeypatch.setitem(sys.modules, TRITON, None if how == "no triton" else answers)
    if how != "no triton":
        monkeypatch.setattr(kernels, "triton_bags", answers, raising=False)
    if how == "torch asked for":
        monkeypatch.setenv("MODELDIFF_KERNELS", "torch")
    if how == "triton":
        left_GD, rows_ND, weight_K, bags = on_gpu
        found = bag_sum(rows_ND, bags, weight_K), bag_dot(left_GD, rows_ND, bags)
        assert found == ("triton's sum", "triton's dot")
    else:
        check(on_gpu)
