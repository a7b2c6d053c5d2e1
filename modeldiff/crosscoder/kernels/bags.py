"""Weighted sums of rows, and products of pairs of rows: all that a sparse code needs beside the encoder's product.

Legend: K entries, G bags, G1 = G + 1, N rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Bags:
    """Entries in bags: entry k stands for row `index_K[k]` and is in bag `bag_K[k]`.

    Attributes:
        index_K: int64.
        bag_K: int64, ascending.
        start_G1: int64, ascending, from 0 to K: bag g holds the entries start_G1[g] <= k < start_G1[g + 1].
    """

    index_K: torch.Tensor
    bag_K: torch.Tensor
    start_G1: torch.Tensor

    def __len__(self) -> int:
        """G."""
        return len(self.start_G1) - 1


def bag_sum(rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor) -> torch.Tensor:
    """(G, D), float32: out[g] = sum over the bag's entries k of weight_K[k] rows_ND[index_K[k]]; 0 for an empty bag.

    Decoding (bags are pairs, rows those of a decoder) and the gradients of weights (bags are features, rows are
    activations or errors) are this. No autograd.

    Args:
        rows_ND: float32, rows contiguous.
        weight_K: float32.
    """
    if len(bags.index_K) == 0:
        return rows_ND.new_zeros(len(bags), rows_ND.shape[1])
    with torch.no_grad():
        return functional.embedding_bag(
            bags.index_K, rows_ND, bags.start_G1, mode="sum", per_sample_weights=weight_K, include_last_offset=True
        )


def bag_dot(left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(K,), float32: out[k] = the product of left_GD[bag_K[k]] and rows_ND[index_K[k]].

    The gradient of a code is this: bags are features, left their decoder rows, rows the gradients of the
    reconstructions. No autograd.

    Args:
        left_GD, rows_ND: float32, rows contiguous.
    """
    if len(bags.index_K) == 0:
        return rows_ND.new_zeros(0)
    with torch.no_grad():
        # What autograd itself calls for the gradient of an embedding bag's weights (mode 0 is the sum); on a CPU 1.5
        # times as fast as torch.sparse.sampled_addmm.
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            left_GD, rows_ND, bags.index_K, bags.start_G1[:-1], bags.bag_K, 0
        )
