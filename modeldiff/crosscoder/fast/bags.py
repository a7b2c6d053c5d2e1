"""Weighted sums of rows, and products of pairs of rows: all that a sparse code needs beside the encoder's product.

On a GPU both run in Triton where it is installed, on everything else by torch's own functions; MODELDIFF_KERNELS=torch
in the environment asks for the latter everywhere.

Legend: K entries, G bags, G1 = G + 1, N rows, D width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

# Of a result that is made piece by piece: 1 MiB.
_PIECE_VALUES = 1 << 18
# The number by which torch's embedding bags name their sum.
_SUM = 0


@dataclass(frozen=True)
class Bags:
    """Entries in bags: entry k stands for row `index_K[k]` and is in bag `bag_K[k]`.

    Attributes:
        index_K: int64, as all three; or int32 on the CPU.
        bag_K: ascending.
        start_G1: ascending, from 0 to K: bag g holds the entries start_G1[g] <= k < start_G1[g + 1].
    """

    index_K: torch.Tensor
    bag_K: torch.Tensor
    start_G1: torch.Tensor

    def __len__(self) -> int:
        """G."""
        return len(self.start_G1) - 1

    def span(self, first: int, last: int) -> tuple[slice, torch.Tensor]:
        """Which entries are in the bags from `first` to before `last`, and where these bags begin among them."""
        start_G1 = self.start_G1[first : last + 1]
        entries = slice(int(start_G1[0]), int(start_G1[-1]))
        return entries, start_G1 - entries.start

    def part(self, first: int, last: int) -> tuple[slice, Bags]:
        """Which entries are in the bags from `first` to before `last`, and these bags alone."""
        entries, start_G1 = self.span(first, last)
        return entries, Bags(self.index_K[entries], self.bag_K[entries] - first, start_G1)


def bag_sum(
    rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor, out_GD: torch.Tensor | None = None
) -> torch.Tensor:
    """(G, D), float32: out[g] = sum over the bag's entries k of weight_K[k] rows_ND[index_K[k]]; 0 for an empty bag.

    Decoding (bags are pairs, rows those of a decoder) and the gradients of weights (bags are features, rows are
    activations or errors) are this. No autograd.

    Args:
        rows_ND: float32, rows contiguous.
        weight_K: float32.
        out_GD: float32, contiguous: memory for the result, which is overwritten.
    """
    if bags.index_K.numel() == 0:
        return rows_ND.new_zeros(len(bags), rows_ND.shape[1]) if out_GD is None else out_GD.zero_()
    if kernels := _kernels(rows_ND):
        return kernels.bag_sum(rows_ND, bags, weight_K, out_GD=out_GD)
    if out_GD is None:
        return _bag_sum(rows_ND, bags.index_K, bags.start_G1, weight_K)
    # The function has no `out`. Piece by piece the copy costs little: each is still in the cache.
    step = max(1, _PIECE_VALUES // rows_ND.shape[1])
    if rows_ND.device.type != "cpu" or len(bags) <= step:
        return out_GD.copy_(_bag_sum(rows_ND, bags.index_K, bags.start_G1, weight_K))
    for first in range(0, len(bags), step):
        entries, start_G1 = bags.span(first, first + step)
        out_GD[first : first + step] = _bag_sum(rows_ND, bags.index_K[entries], start_G1, weight_K[entries])
    return out_GD


def _bag_sum(
    rows_ND: torch.Tensor, index_K: torch.Tensor, start_G1: torch.Tensor, weight_K: torch.Tensor
) -> torch.Tensor:
    if index_K.numel() == 0:
        return rows_ND.new_zeros(len(start_G1) - 1, rows_ND.shape[1])
    # What torch.nn.functional.embedding_bag calls, without its checks.
    out_GD: torch.Tensor = torch.embedding_bag(
        rows_ND.detach(), index_K, start_G1, False, _SUM, False, weight_K.detach(), include_last_offset=True
    )[0]
    return out_GD


def bag_dot(left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(K,), float32: out[k] = the product of left_GD[bag_K[k]] and rows_ND[index_K[k]].

    The gradient of a code is this: bags are features, left their decoder rows, rows the gradients of the
    reconstructions. No autograd.

    Args:
        left_GD, rows_ND: float32, rows contiguous.
    """
    if bags.index_K.numel() == 0:
        return rows_ND.new_zeros(0)
    if kernels := _kernels(rows_ND):
        return kernels.bag_dot(left_GD, rows_ND, bags)
    # What autograd itself calls for the gradient of an embedding bag's weights; on a CPU 1.5 times as fast as
    # torch.sparse.sampled_addmm.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left_GD.detach(), rows_ND.detach(), bags.index_K, bags.start_G1[:-1], bags.bag_K, _SUM
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
