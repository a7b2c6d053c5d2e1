"""The Triton kernels: on a GPU where there is one, otherwise by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from modeldiff.crosscoder.fast.sparse import Bags
from tests.crosscoder.fast.formulas import assert_dot, assert_sum, made_bags

if TYPE_CHECKING:
    from tests.crosscoder.fast.interpreted import Case

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

ROOT = Path(__file__).parents[3]
SUMS = ("tall", "wide", "chosen")


def made(
    lengths: Sequence[int], rows: int, width: int, left: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32
) -> Case:
    random = torch.Generator().manual_seed(len(lengths) + width)
    bags = made_bags(lengths, rows, seed=width)
    return (
        torch.randn(len(lengths), width, generator=random).to(left),
        torch.randn(rows, width, generator=random).to(dtype),
        torch.randn(len(bags.index_K), generator=random),
        bags,
    )


def columns(case: Case, first: int, last: int) -> Case:
    """Left and rows are columns of wider matrices."""
    left_GD, rows_ND, weight_K, bags = case
    return left_GD[:, first:last], rows_ND[:, first:last], weight_K, bags


CASES = {
    "uneven bags": made([3, 0, 1, 37, 2], rows=50, width=100),
    "empty bags at both ends": made([0, 0, 5, 0, 2, 0], rows=9, width=33),
    "one huge bag": made([300], rows=20, width=70),
    "a huge bag among short ones": made([2, 0, 1, 200, 3, 1], rows=40, width=16),
    "long bags": made([40, 35, 50], rows=30, width=64),
    "more than a tile of columns": made([2, 5, 1], rows=7, width=1030),
    "one column": made([2, 0, 5], rows=7, width=1),
    "one entry": made([1], rows=1, width=8),
    "no entries": made([0, 0, 0], rows=4, width=20),
    "bfloat16 rows": made([3, 0, 20, 1], rows=15, width=90, dtype=torch.bfloat16),
    "bfloat16 left and rows": made([3, 0, 20, 1], rows=15, width=90, left=torch.bfloat16, dtype=torch.bfloat16),
    "columns of wider matrices": columns(made([4, 1, 6], rows=8, width=50), 7, 43),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Of each case, on the CPU."""
    if torch.cuda.is_available():
        from tests.crosscoder.fast import interpreted

        found = {name: interpreted.answers(tuple(moved(part) for part in case)) for name, case in CASES.items()}
        return {name: {key: value.cpu() for key, value in one.items()} for name, one in found.items()}
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(CASES, folder / "cases.pt")
    run("tests.crosscoder.fast.interpreted", folder / "cases.pt", folder / "answers.pt", TRITON_INTERPRET="1")
    return torch.load(folder / "answers.pt")


def moved(part: torch.Tensor | Bags) -> torch.Tensor | Bags:
    if isinstance(part, Bags):
        return Bags(**{field.name: getattr(part, field.name).cuda() for field in fields(part)})
    whole = torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="cuda")
    return whole.copy_(part)


def run(module: str, *arguments: object, **environment: str) -> str:
    """Standard output of a module of the tests."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


@pytest.mark.parametrize("name", CASES)
def test_sums_and_products_are_those_of_the_dense_formulas_with_the_same_bits_again(name: str, answers) -> None:
    left_GD, rows_ND, weight_K, bags = CASES[name]
    for tile in SUMS:
        assert_sum(answers[name][tile], rows_ND, bags, weight_K)
    assert_dot(answers[name]["dot"], left_GD, rows_ND, bags)
    for key in (*SUMS, "dot"):
        assert torch.equal(answers[name][key], answers[name][f"{key} again"])


def test_long_bags_get_tall_tiles_and_short_ones_wide_tiles(answers) -> None:
    for name, tile in (("long bags", "tall"), ("more than a tile of columns", "wide")):
        assert torch.equal(answers[name]["chosen"], answers[name][tile])


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    lines = run("tests.crosscoder.fast.interpreted", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    kernels = {"_sum 32 x 64", "_sum 4 x 1024", "_dot 8 x 512"}
    assert set(lines) == {" ".join(one) for one in product(("A100", "H100"), ("fp32", "bf16"), kernels)}
