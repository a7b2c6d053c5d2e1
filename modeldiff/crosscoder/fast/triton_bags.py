"""`bag_sum` and `bag_dot` of sparse.py on a GPU, in Triton.

Legend: K entries, G bags, G1 = G + 1, N rows, D width; a tile is E entries times W columns.

At the size in mind (131,072 features of 4096 + 4096 weights, 2048 pairs, k = 200, so K = 409,600) each call gathers K
rows, 13.4 GB, but the matrices they come from are only 4.3 GB (one row a feature) or 67 MB (one a pair): rows should
come from the L2 cache. Hence tall tiles where bags are pairs, with the bags as the grid's fast axis (programs that run
at one time work on the same 64 columns), and wide ones where bags are features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from modeldiff.crosscoder.fast.sparse import Bags


@dataclass(frozen=True)
class Tile:
    """What a program holds at once: `entries` rows, `columns` of each. Both are powers of two."""

    entries: int
    columns: int
    warps: int = 4


# For long bags: 64 columns of float32 are two whole cache lines. For short ones (three entries on average) what a bag
# lacks in entries its columns make up for; each sum stays in one program, without atomics.
TALL, WIDE = Tile(entries=32, columns=64), Tile(entries=4, columns=1024)
_LONG = 16
# Each entry has a result of its own, so programs share the entries evenly, and neither long bags nor empty ones matter.
DOT = Tile(entries=8, columns=512)


def sum_tile(entries: int, bags: int) -> Tile:
    """The tile for `entries` in `bags`. It depends on sizes alone, so that a repeated run gives the same bits."""
    return TALL if entries >= _LONG * bags else WIDE


def bag_sum(
    rows_ND: torch.Tensor,
    bags: Bags,
    weight_K: torch.Tensor,
    out_GD: torch.Tensor,
    some: slice,
    tile: Tile | None = None,
) -> torch.Tensor:
    """`sparse.bag_sum` with rows in float32 or bfloat16. The same input and tile give the same bits."""
    G, D = out_GD.shape
    if not G:
        return out_GD
    tile = tile or sum_tile(len(bags.index_K), G)
    with torch.cuda.device_of(rows_ND):
        _sum[G, triton.cdiv(D, tile.columns)](
            rows_ND, bags.index_K, weight_K, bags.start_G1, out_GD, some.start, len(rows_ND), D, _stride(rows_ND),
            E=tile.entries, W=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return out_GD


def bag_dot(
    left_GD: torch.Tensor, rows_ND: torch.Tensor, bags: Bags, some: slice, dot_K: torch.Tensor, tile: Tile = DOT
) -> torch.Tensor:
    """`sparse.bag_dot` with left and rows each in float32 or bfloat16. The same input and tile give the same bits."""
    K, D = len(bags.index_K), rows_ND.shape[1]
    with torch.cuda.device_of(rows_ND):
        _dot[(triton.cdiv(K, tile.entries),)](
            left_GD, rows_ND, bags.bag_K, bags.index_K, dot_K,
            some.start, len(left_GD), K, D, _stride(left_GD), _stride(rows_ND),
            E=tile.entries, W=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return dot_K


def _stride(rows_ND: torch.Tensor) -> int:
    """From one row to the next.

    Raises:
        ValueError: the columns of a row are not side by side.
    """
    if rows_ND.shape[1] > 1 and rows_ND.stride(1) != 1:
        raise ValueError(f"rows must be contiguous; these have strides {rows_ND.stride()}")
    return rows_ND.stride(0)


# Offsets can pass 2^31: index, bag and start are int64, and so is all that is computed from them. Loops are `while`s
# since the interpreter of some releases cannot take the ends of a `range` from tensors; what is compiled is alike.
# Nothing is compiled anew because a batch has other sizes: those are not specialised, and lists begin where they lie.


@triton.jit(do_not_specialize=["first", "N"])
def _sum(
    rows_ND: tl.tensor,
    index_K: tl.tensor,
    weight_K: tl.tensor,
    start_G1: tl.tensor,
    out_GD: tl.tensor,
    first: tl.tensor,
    N: tl.tensor,
    D: tl.tensor,
    row_stride: tl.tensor,
    E: tl.constexpr,
    W: tl.constexpr,
) -> None:
    """One bag, W columns. Entries of a tile are summed side by side and only added to each other at the end."""
    bag = tl.program_id(0).to(tl.int64)
    column_W = tl.program_id(1) * W + tl.arange(0, W)
    inside_W = column_W < D
    last = tl.load(start_G1 + first + bag + 1)
    sum_EW = tl.zeros((E, W), tl.float32)
    at = tl.load(start_G1 + first + bag)
    while at < last:
        entry_E = at + tl.arange(0, E)
        there_E = entry_E < last
        index_E = tl.load(index_K + entry_E, mask=there_E, other=-1)
        there_E = (index_E >= 0) & (index_E < N)
        weight_E = tl.load(weight_K + entry_E, mask=there_E, other=0.0)
        row_EW = tl.load(
            rows_ND + index_E[:, None] * row_stride + column_W[None, :],
            mask=there_E[:, None] & inside_W[None, :],
            other=0.0,
        )
        sum_EW += weight_E[:, None] * row_EW.to(tl.float32)
        at += E
    tl.store(out_GD + bag * D + column_W, tl.sum(sum_EW, axis=0), mask=inside_W)


@triton.jit(do_not_specialize=["first", "G", "K"])
def _dot(
    left_GD: tl.tensor,
    rows_ND: tl.tensor,
    bag_K: tl.tensor,
    index_K: tl.tensor,
    dot_K: tl.tensor,
    first: tl.tensor,
    G: tl.tensor,
    K: tl.tensor,
    D: tl.tensor,
    left_stride: tl.tensor,
    row_stride: tl.tensor,
    E: tl.constexpr,
    W: tl.constexpr,
) -> None:
    """E entries, all columns. Neighbours are mostly of one bag and then load one left row, at the same address and from
    the same thread: the first load brings it into L1, and L2 sees each left row once in a program."""
    entry_E = tl.program_id(0).to(tl.int64) * E + tl.arange(0, E)
    bag_E = tl.load(bag_K + entry_E, mask=entry_E < K, other=-1) - first
    there_E = (bag_E >= 0) & (bag_E < G)
    left_E = bag_E[:, None] * left_stride
    row_E = tl.load(index_K + entry_E, mask=there_E, other=0)[:, None] * row_stride
    sum_EW = tl.zeros((E, W), tl.float32)
    at = 0
    while at < D:
        column_W = (at + tl.arange(0, W))[None, :]
        mask_EW = there_E[:, None] & (column_W < D)
        left_EW = tl.load(left_GD + left_E + column_W, mask=mask_EW, other=0.0)
        row_EW = tl.load(rows_ND + row_E + column_W, mask=mask_EW, other=0.0)
        sum_EW += left_EW.to(tl.float32) * row_EW.to(tl.float32)
        at += W
    more_E = tl.sum(sum_EW, axis=1)
    tl.store(dot_K + entry_E, tl.load(dot_K + entry_E, mask=there_E) + more_E, mask=there_E)
