"""The Triton kernels: on a GPU where there is one, otherwise by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

from modeldiff.crosscoder.fast.sparse import Bags
from tests.crosscoder.fast.formulas import assert_right, columns, made_case

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

ROOT = Path(__file__).parents[3]
SUMS = ("tall", "wide", "chosen")


CASES = {
    "uneven bags": made_case([3, 0, 1, 37, 2], rows=50, width=100),
    "empty bags at both ends": made_case([0, 0, 5, 0, 2, 0], rows=9, width=33),
    "one huge bag": made_case([300], rows=20, width=70),
    "a huge bag among short ones": made_case([2, 0, 1, 200, 3, 1], rows=40, width=16),
    "long bags": made_case([40, 35, 50], rows=30, width=64),
    "more than a tile of columns": made_case([2, 5, 1], rows=7, width=1030),
    "one column": made_case([2, 0, 5], rows=7, width=1),
    "one entry": made_case([1], rows=1, width=8),
    "no entries": made_case([0, 0, 0], rows=4, width=20),
    "bfloat16 rows": made_case([3, 0, 20, 1], rows=15, width=90, dtypes=(torch.float32, torch.bfloat16)),
    "bfloat16 left and rows": made_case([3, 0, 20, 1], rows=15, width=90, dtypes=(torch.bfloat16,) * 2),
    "columns of wider matrices": columns(made_case([4, 1, 6], rows=8, width=50), 7, 43),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What the kernels answer to each case, moved to the CPU."""
    if torch.cuda.is_available():
        from tests.crosscoder.fast import interpreted

        found = {name: interpreted.answers(tuple(moved(part) for part in case)) for name, case in CASES.items()}
        return {name: {key: value.cpu() for key, value in one.items()} for name, one in found.items()}
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(CASES, folder / "cases.pt")
    printed(folder / "cases.pt", folder / "answers.pt", TRITON_INTERPRET="1")
    return torch.load(folder / "answers.pt")


def moved(part: torch.Tensor | Bags) -> torch.Tensor | Bags:
    if isinstance(part, Bags):
        return Bags(**{field.name: getattr(part, field.name).cuda() for field in fields(part)})
    whole = torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="cuda")
    return whole.copy_(part)


def printed(*files: Path, **environment: str) -> str:
    """What interpreted.py prints in a process of its own."""
    command = [sys.executable, "-m", "tests.crosscoder.fast.interpreted", *map(str, files)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize("name", CASES)
def test_sums_and_products_are_those_of_the_dense_formulas_with_the_same_bits_again(name: str, answers) -> None:
    for tile in SUMS:
        assert_right(answers[name][tile], answers[name]["dot"], CASES[name])
    for key in (*SUMS, "dot"):
        assert torch.equal(answers[name][key], answers[name][f"{key} again"])


@pytest.mark.parametrize("name", CASES)
def test_some_bags_and_some_rows_are_taken_from_lists_of_all(name: str, answers) -> None:
    found, bag_K, bags = answers[name], CASES[name][3].bag_K, len(CASES[name][3])
    assert torch.equal(found["inner"], found["tall"][1:-1])
    assert torch.equal(found["inner dot"], 1 + found["dot"].where((bag_K > 0) & (bag_K < bags - 1), 0))
    assert torch.equal(found["inner rows"], found["weighted"])


def test_long_bags_get_tall_tiles_and_short_ones_wide_tiles(answers) -> None:
    for name, tile in (("long bags", "tall"), ("more than a tile of columns", "wide")):
        assert torch.equal(answers[name]["chosen"], answers[name][tile])


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    lines = printed(TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    kernels = {"_sum 32 x 64", "_sum 4 x 1024", "_dot 8 x 512"}
    assert set(lines) == {" ".join(one) for one in product(("A100", "H100"), ("fp32", "bf16"), kernels)}
