"""A sparse code's encoder and decoder for autograd: work and gradients only at the kept entries.

Equal to the dense products of partitioned.py with a code that is 0 elsewhere, in value and gradient, at a fraction of
the work: with k of F features active, the dense ones spend (F - k) / F of it on zeros.

The gradients of weight matrices are as large as these and made anew in every step. They are written over those of the
step before, straight into `grad`: memory of this size that comes and goes is slow, and leaves the process with holes.
So `backward` gives no gradient to weights that are not leaves, and a second loss must come after this one.

Legend: B pairs, F features, K kept entries feature by feature (kept.py), Da, Db widths, Fa, Fb features that A, B has.
"""

from __future__ import annotations

from typing import Any

import torch

from modeldiff.crosscoder.kernels.bags import bag_dot, bag_sum
from modeldiff.crosscoder.kernels.kept import Kept

_Grads = tuple[torch.Tensor | None, ...]


def encode_kept(
    pre_K: torch.Tensor,
    x_a_BDa: torch.Tensor,
    x_b_BDb: torch.Tensor,
    w_a_FaDa: torch.Tensor,
    w_b_FbDb: torch.Tensor,
    b_F: torch.Tensor,
    kept: Kept,
    *,
    share: float,
) -> torch.Tensor:
    """pre_K itself, as a function of the encoder's weights: autograd sees where the values came from.

    Args:
        pre_K: pre-activations at the kept entries, bias included, made without autograd.
        share: weight of each of the two encoders in a shared feature (see `partitioned.encode_product`).
    """
    out: torch.Tensor = _Encode.apply(pre_K, x_a_BDa, x_b_BDb, w_a_FaDa, w_b_FbDb, b_F, kept, share)
    return out


def decode_kept(
    f_K: torch.Tensor, w_a_FaDa: torch.Tensor, w_b_FbDb: torch.Tensor, kept: Kept
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f W_a (B, Da), f W_b (B, Db)) of a code with the values `f_K` at the kept entries."""
    out: tuple[torch.Tensor, torch.Tensor] = _Decode.apply(f_K, w_a_FaDa, w_b_FbDb, kept)
    return out


def rows_of(w_FD: torch.Tensor, rows_Z: torch.Tensor) -> torch.Tensor:
    """Some rows of a leaf, each at most once; their gradient is added to `grad` at these rows alone."""
    out: torch.Tensor = _Rows.apply(w_FD, rows_Z)
    return out


def _gradient(w_FD: torch.Tensor) -> torch.Tensor:
    """Memory for a gradient that is about to be overwritten: that of the step before, if there is one."""
    if w_FD.grad is None or w_FD.grad.shape != w_FD.shape:
        w_FD.grad = torch.empty_like(w_FD)
    return w_FD.grad


def _seen(w_a: torch.Tensor, w_b: torch.Tensor, features: int) -> tuple[slice, slice]:
    """The features that each model has."""
    return slice(0, len(w_a)), slice(features - len(w_b), features)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pre_K: torch.Tensor,
        x_a: torch.Tensor,
        x_b: torch.Tensor,
        w_a: torch.Tensor,
        w_b: torch.Tensor,
        b_F: torch.Tensor,
        kept: Kept,
        share: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_a, x_b)
        ctx.weights = (w_a, w_b)
        ctx.kept, ctx.share, ctx.seen = kept, share, _seen(w_a, w_b, len(b_F))
        return pre_K.view_as(pre_K)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> _Grads:
        (g_K,) = grads
        kept, (seen_a, seen_b) = ctx.kept, ctx.seen
        grad_b_F = torch.segment_reduce(g_K, "sum", offsets=kept.start_F1, initial=0.0)
        if ctx.share != 1:
            g_K = g_K.clone()
            g_K[kept.of_features(slice(seen_b.start, seen_a.stop))[0]] *= ctx.share
        for x_BD, w_FmD, seen in zip(ctx.saved_tensors, ctx.weights, (seen_a, seen_b), strict=True):
            entries, bags = kept.of_features(seen)
            bag_sum(x_BD, bags, g_K[entries], _gradient(w_FmD))
        return None, None, None, None, None, grad_b_F, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, f_K: torch.Tensor, w_a: torch.Tensor, w_b: torch.Tensor, kept: Kept
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(f_K, w_a, w_b)
        ctx.weights = (w_a, w_b)
        ctx.kept, ctx.seen = kept, _seen(w_a, w_b, kept.features)
        xhat = []
        for w_FmD, seen in zip((w_a, w_b), ctx.seen, strict=True):
            numbers_K, bags = kept.of_pairs(seen)
            xhat.append(bag_sum(w_FmD, bags, f_K.index_select(0, numbers_K)))
        return xhat[0], xhat[1]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> _Grads:
        f_K = ctx.saved_tensors[0]
        grad_f_K = torch.zeros_like(f_K)
        for g_BD, w_FmD, seen in zip(grads, ctx.weights, ctx.seen, strict=True):
            entries, bags = ctx.kept.of_features(seen)
            g_BD = g_BD.contiguous()
            grad_f_K[entries] += bag_dot(w_FmD.detach(), g_BD, bags)
            bag_sum(g_BD, bags, f_K[entries], _gradient(w_FmD))
        return grad_f_K, None, None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_FD: torch.Tensor, rows_Z: torch.Tensor) -> torch.Tensor:
        ctx.w_FD, ctx.rows_Z = w_FD, rows_Z
        return w_FD.detach().index_select(0, rows_Z)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> _Grads:
        if ctx.w_FD.grad is None:
            ctx.w_FD.grad = torch.zeros_like(ctx.w_FD)
        ctx.w_FD.grad.index_add_(0, ctx.rows_Z, grads[0])
        return None, None
