"""What the Triton kernels answer on the CPU: `TRITON_INTERPRET=1 python -m` this module, with two files IN and OUT.

A process of its own, since Triton reads the variable when it is imported, for good. Legend as in bags.py.
"""

from __future__ import annotations

import sys

import torch

from modeldiff.crosscoder.fast import triton_bags
from modeldiff.crosscoder.fast.sparse import Bags

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Bags]


def answers(case: Case) -> dict[str, torch.Tensor]:
    """Sums by both tiles, whichever the sizes would choose, and products; and once more.

    Args:
        case: left (G, D), rows (N, D), weights (K) and bags.
    """
    left_GD, rows_ND, weight_K, bags = case
    found = {}
    for run in ("", " again"):
        for name, tile in (("tall", triton_bags.TALL), ("wide", triton_bags.WIDE), ("chosen", None)):
            found[name + run] = triton_bags.bag_sum(rows_ND, bags, weight_K, tile)
        found["dot" + run] = triton_bags.bag_dot(left_GD, rows_ND, bags)
    return found


if __name__ == "__main__":
    source, target = sys.argv[1:]
    cases = torch.load(source, weights_only=False)
    torch.save({name: answers(case) for name, case in cases.items()}, target)
