"""The Triton kernels without a GPU, in a process of its own, since Triton reads TRITON_INTERPRET once, when imported.

`TRITON_INTERPRET=1 python -m tests.crosscoder.fast.interpreted IN OUT` writes what they answer on the CPU to the cases
of a file; without files and variable, it compiles them for GPUs and prints one line for each kernel made: the
interpreter takes what the compiler would refuse. Legend as in formulas.py.
"""

from __future__ import annotations

import sys

import torch
import triton

from modeldiff.crosscoder.fast import triton_bags
from modeldiff.crosscoder.fast.sparse import Bags
from modeldiff.crosscoder.fast.triton_bags import DOT, TALL, WIDE, Tile
from tests.crosscoder.fast.formulas import Case

TYPES = {
    **dict.fromkeys(("first", "G", "K", "N", "D", "left_stride", "row_stride"), "i32"),
    **dict.fromkeys(("index_K", "bag_K", "start_G1"), "*i64"),
    **dict.fromkeys(("weight_K", "out_GD", "dot_K"), "*fp32"),
}


def answers(case: Case) -> dict[str, torch.Tensor]:
    """Sums by both tiles, whichever the sizes would choose, and products; and once more. For all bags but the first and
    the last ("inner"), the products added to ones; and of all rows but these ("inner rows"), beside the sum of all
    where the entries of the others have the weight 0."""
    left_GD, rows_ND, weight_K, bags = case
    found, every, inner = {}, slice(0, len(bags)), slice(1, max(1, len(bags) - 1))
    out_GD = torch.full((len(bags), rows_ND.shape[1]), torch.nan, device=rows_ND.device)
    for run in ("", " again"):
        for name, tile in (("tall", TALL), ("wide", WIDE), ("chosen", None)):
            found[name + run] = triton_bags.bag_sum(rows_ND, bags, weight_K, out_GD.clone(), every, tile)
        found["dot" + run] = triton_bags.bag_dot(left_GD, rows_ND, bags, every, torch.zeros_like(weight_K))
    found["inner"] = triton_bags.bag_sum(rows_ND, bags, weight_K, out_GD[inner].clone(), inner, TALL)
    found["inner dot"] = triton_bags.bag_dot(left_GD[inner], rows_ND, bags, inner, torch.ones_like(weight_K))
    shifted = Bags(bags.index_K - 1, bags.start_G1)
    found["inner rows"] = triton_bags.bag_sum(rows_ND[1:-1], shifted, weight_K, out_GD.clone(), every, TALL)
    is_inner_K = (bags.index_K > 0) & (bags.index_K < len(rows_ND) - 1)
    found["weighted"] = triton_bags.bag_sum(rows_ND, bags, weight_K * is_inner_K, out_GD.clone(), every, TALL)
    return found


def compiled(kernel: triton.JITFunction, tile: Tile, dtype: str, capability: int) -> bytes:
    """The machine code, with left and rows of the type."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {**TYPES, "left_GD": f"*{dtype}", "rows_ND": f"*{dtype}", "E": "constexpr", "W": "constexpr"}
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, {"E": tile.entries, "W": tile.columns})
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": tile.warps}).asm["cubin"]


if __name__ == "__main__":
    if sys.argv[1:]:
        source, target = sys.argv[1:]
        cases = torch.load(source, weights_only=False)
        torch.save({name: answers(case) for name, case in cases.items()}, target)
    else:
        for device, capability in (("A100", 80), ("H100", 90)):
            for dtype in ("fp32", "bf16"):
                for kernel, tile in ((triton_bags._sum, TALL), (triton_bags._sum, WIDE), (triton_bags._dot, DOT)):
                    assert compiled(kernel, tile, dtype, capability)
                    print(f"{device} {dtype} {kernel.__name__} {tile.entries} x {tile.columns}")  # noqa: T201
