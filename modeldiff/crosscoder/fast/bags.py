"""Weighted sums of rows, and products of pairs of rows: all that a sparse code needs beside the encoder's product.

On a GPU both run in Triton where it is installed, on everything else by torch's own functions; MODELDIFF_KERNELS=torch
in the environment asks for the latter everywhere.

Legend: K entries, G bags, G1 = G + 1, N rows, D width.
"""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType

import torch
from torch.nn.functional import embedding_bag

from modeldiff.crosscoder.fast.entries import Bags


def bag_sum(rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor) -> torch.Tensor:
    """(G, D), float32: out[g] = sum over the bag's entries k of weight_K[k] rows_ND[index_K[k]]; 0 for an empty bag.

    Decoding (bags are pairs, rows those of a decoder) and the gradients of weights (bags are features, rows are
    activations or errors) are this. No autograd.

    Args:
        rows_ND: float32, rows contiguous.
        weight_K: float32.
    """
    if bags.index_K.numel() == 0:
        return rows_ND.new_zeros(len(bags), rows_ND.shape[1])
    if kernels := _kernels(rows_ND):
        return kernels.bag_sum(rows_ND, bags, weight_K)
    with torch.no_grad():
        return _bag_sum(rows_ND, bags, weight_K)


def bag_sum_and_dot(
    rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor, left_GD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(`bag_sum`, dot_K), float32: dot[k] is the product of left_GD[bag_K[k]] and rows_ND[index_K[k]].

    With the gradients of the reconstructions as rows and features as bags, the sum is the gradient of a decoder, and
    the products, with the decoder as `left`, are that of the code.
    """
    if bags.index_K.numel() == 0:
        return bag_sum(rows_ND, bags, weight_K), rows_ND.new_zeros(0)
    if kernels := _kernels(rows_ND):
        return kernels.bag_sum(rows_ND, bags, weight_K), kernels.bag_dot(left_GD, rows_ND, bags)
    with torch.enable_grad():
        # The products are the gradient of the sum in its weights.
        weight_K = weight_K.detach().requires_grad_()
        sum_GD = _bag_sum(rows_ND, bags, weight_K)
        (dot_K,) = torch.autograd.grad(sum_GD, weight_K, left_GD.detach())
    return sum_GD.detach(), dot_K


def bag_dot(left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags) -> torch.Tensor:
    """The second of `bag_sum_and_dot`, for itself: what a feature makes of some pairs. No autograd."""
    if bags.index_K.numel() and (kernels := _kernels(rows_ND)):
        return kernels.bag_dot(left_GD, rows_ND, bags)
    return bag_sum_and_dot(rows_ND, bags, rows_ND.new_ones(len(bags.index_K)), left_GD)[1]


def _bag_sum(rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor) -> torch.Tensor:
    return embedding_bag(
        bags.index_K, rows_ND.detach(), bags.start_G1, mode="sum", per_sample_weights=weight_K, include_last_offset=True
    )


def _kernels(rows_ND: torch.Tensor) -> ModuleType | None:
    """Kernels for the device that the rows are on, or None for torch's own."""
    if not rows_ND.is_cuda or os.environ.get("MODELDIFF_KERNELS") == "torch":
        return None
    return _triton_bags()


@cache
def _triton_bags() -> ModuleType | None:
    """Imported on first use: Triton takes a second to load, and a machine without a GPU need not have it."""
    try:
        from modeldiff.crosscoder.fast import triton_bags
    except ImportError:
        return None
    return triton_bags
