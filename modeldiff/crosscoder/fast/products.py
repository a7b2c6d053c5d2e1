"""Encoder and decoder products over the partition, with their gradients written out.

Plain autograd would join the partitions by concatenating and split them by slicing, which costs a dozen passes over
the (B, F) matrix and as much memory again. Here each product is written straight into its columns of one buffer, and
the mean over the sides is part of the product.

Training itself uses kernels/code.py, which works at the kept entries only. This is the dense reference it is tested
against, and what evaluation and the auxiliary loss use.

Legend: B pairs, F features, Da, Db widths, nA, nS, nB sizes of the partitions; Fa = nA + nS, Fb = nS + nB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_Grads = tuple[torch.Tensor | None, ...]

# Shared features are summed over both models about so many at a time: they are still in a CPU's cache when the second
# model's part is added. With 32,768 features that is 1.2 times as fast as all at once.
_SHARED_COLUMNS = 1024
_ALIGNED = 64


def encode_product(
    x_a_BDa: torch.Tensor,
    x_b_BDb: torch.Tensor,
    w_a_FaDa: torch.Tensor,
    w_b_FbDb: torch.Tensor,
    b_F: torch.Tensor,
    *,
    share: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """pre_BF = [x_a W_a' | share (x_a W_a' + x_b W_b') | x_b W_b'] + b, in the dtype of the weights.

    Args:
        share: 1/2 for the mean of the two encoders, 1 for their sum.
        dtype: of the products.
    """
    tensors = (x_a_BDa, x_b_BDb, w_a_FaDa, w_b_FbDb, b_F)
    pre_BF: torch.Tensor = _Encode.apply(*(tensor.to(dtype) for tensor in tensors), share)
    return pre_BF.to(w_a_FaDa.dtype)


@torch.no_grad()
def product_into(
    out_BF: torch.Tensor,
    x_a_BDa: torch.Tensor,
    x_b_BDb: torch.Tensor,
    w_a_FaDa: torch.Tensor,
    w_b_FbDb: torch.Tensor,
    share: float,
) -> torch.Tensor:
    """`encode_product` without the bias, in the dtype of all its arguments, written into `out_BF`, which is returned.

    No autograd.
    """
    n_a, n_a_only = len(w_a_FaDa), out_BF.shape[1] - len(w_b_FbDb)
    n_shared = n_a - n_a_only
    if n_a_only:
        torch.mm(x_a_BDa, w_a_FaDa[:n_a_only].T, out=out_BF[:, :n_a_only])
    for first, last in _blocks(n_shared) if out_BF.device.type == "cpu" else [(0, n_shared)]:
        shared = out_BF[:, n_a_only + first : n_a_only + last]
        w_a, w_b = w_a_FaDa[n_a_only + first : n_a_only + last], w_b_FbDb[first:last]
        torch.addmm(shared, x_a_BDa, w_a.T, beta=0, alpha=share, out=shared)
        shared.addmm_(x_b_BDb, w_b.T, alpha=share)
    if n_shared < len(w_b_FbDb):
        torch.mm(x_b_BDb, w_b_FbDb[n_shared:].T, out=out_BF[:, n_a:])
    return out_BF


def _blocks(columns: int) -> Iterator[tuple[int, int]]:
    """About equal parts, (first, behind the last): a narrow last one would be slow, and rounded otherwise."""
    parts = max(1, round(columns / _SHARED_COLUMNS))
    step = max(1, -(-columns // (parts * _ALIGNED)) * _ALIGNED)
    for first in range(0, columns, step):
        yield first, min(first + step, columns)


def decode_product(
    f_BF: torch.Tensor, w_a_FaDa: torch.Tensor, w_b_FbDb: torch.Tensor, *, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f[:, :Fa] W_a (B, Da), f[:, nA:] W_b (B, Db)), in the dtype of the weights; `dtype` is that of the products."""
    tensors = (f_BF, w_a_FaDa, w_b_FbDb)
    xhat_a, xhat_b = _Decode.apply(*(tensor.to(dtype) for tensor in tensors))
    return xhat_a.to(w_a_FaDa.dtype), xhat_b.to(w_b_FbDb.dtype)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_a: torch.Tensor,
        x_b: torch.Tensor,
        w_a: torch.Tensor,
        w_b: torch.Tensor,
        b_F: torch.Tensor,
        share: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_a, x_b, w_a, w_b)
        ctx.share = share
        ctx.n_shared = len(w_a) + len(w_b) - len(b_F)
        return product_into(x_a.new_empty(len(x_a), len(b_F)), x_a, x_b, w_a, w_b, share).add_(b_F)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> _Grads:
        x_a, x_b, w_a, w_b = ctx.saved_tensors
        (g_BF,) = grads
        n_shared, n_a = ctx.n_shared, len(w_a)
        n_a_only = n_a - n_shared
        need_x_a, need_x_b = ctx.needs_input_grad[:2]
        grad_w_a = g_BF[:, :n_a].T @ x_a
        grad_w_a[n_a_only:] *= ctx.share
        grad_w_b = g_BF[:, n_a_only:].T @ x_b
        grad_w_b[:n_shared] *= ctx.share
        grad_x_a = grad_x_b = None
        if need_x_a:
            grad_x_a = (g_BF[:, :n_a_only] @ w_a[:n_a_only]).addmm_(
                g_BF[:, n_a_only:n_a], w_a[n_a_only:], alpha=ctx.share
            )
        if need_x_b:
            grad_x_b = (g_BF[:, n_a:] @ w_b[n_shared:]).addmm_(g_BF[:, n_a_only:n_a], w_b[:n_shared], alpha=ctx.share)
        return grad_x_a, grad_x_b, grad_w_a, grad_w_b, g_BF.sum(dim=0), None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, f_BF: torch.Tensor, w_a: torch.Tensor, w_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(f_BF, w_a, w_b)
        return f_BF[:, : len(w_a)] @ w_a, f_BF[:, f_BF.shape[1] - len(w_b) :] @ w_b

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> _Grads:
        f_BF, w_a, w_b = ctx.saved_tensors
        g_a, g_b = grads
        n_a, n_a_only = len(w_a), f_BF.shape[1] - len(w_b)
        n_shared = n_a - n_a_only
        grad_f = None
        if ctx.needs_input_grad[0]:
            grad_f = torch.empty_like(f_BF)
            torch.mm(g_a, w_a.T, out=grad_f[:, :n_a])
            torch.mm(g_b, w_b[n_shared:].T, out=grad_f[:, n_a:])
            grad_f[:, n_a_only:n_a].addmm_(g_b, w_b[:n_shared].T)
        return grad_f, f_BF[:, :n_a].T @ g_a, f_BF[:, n_a_only:].T @ g_b
