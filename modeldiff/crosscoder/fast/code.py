"""A sparse code's decoder and encoder, and their gradients: work only at the kept entries.

Equal to the dense products of partitioned.py with a code that is 0 elsewhere, in value and gradient, at a fraction of
the work: with k of F features active, the dense ones spend (F - k) / F of it on zeros.

The gradients of weight matrices are as large as these and made anew in every step. They are written over those of the
step before, straight into `grad`: memory of this size that comes and goes is slow, and leaves the process with holes.
So a second loss (`rows_of`) must come after this one.

Legend: B pairs, F features, K kept entries (kept.py; a code is listed pair by pair, gradients of it feature by
feature), Da, Db widths, Fa, Fb features that A, B has.
"""

from __future__ import annotations

from typing import Any

import torch

from modeldiff.crosscoder.fast.bags import bag_dot, bag_sum
from modeldiff.crosscoder.fast.entries import Kept
from modeldiff.crosscoder.fast.rooms import lasting

_Grads = tuple[torch.Tensor | None, ...]


def decode_kept(
    f_K: torch.Tensor,
    w_a_FaDa: torch.Tensor,
    w_b_FbDb: torch.Tensor,
    kept: Kept,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f W_a (B, Da), f W_b (B, Db)) of a code with the values `f_K` at the kept entries. No autograd.

    Args:
        out: memory for them, which is overwritten.
    """
    seen_a, seen_b = _seen(w_a_FaDa, w_b_FbDb, kept.features)
    out_a, out_b = out or (None, None)
    return _decoded(f_K, w_a_FaDa, kept, seen_a, out_a), _decoded(f_K, w_b_FbDb, kept, seen_b, out_b)


def _decoded(
    f_K: torch.Tensor, w_FmD: torch.Tensor, kept: Kept, seen: slice, out_BD: torch.Tensor | None
) -> torch.Tensor:
    places, bags = kept.of_pairs(seen)
    return bag_sum(w_FmD, bags, f_K if places is None else f_K.index_select(0, places), out_BD)


def decode_backward(
    g_a_BDa: torch.Tensor,
    g_b_BDb: torch.Tensor,
    f_K: torch.Tensor,
    w_a_FaDa: torch.Tensor,
    w_b_FbDb: torch.Tensor,
    kept: Kept,
) -> torch.Tensor:
    """The gradient of the code, feature by feature, of a loss in what `decode_kept` gave; those of the weights are
    written into their `grad`.

    Args:
        g_a_BDa, g_b_BDb: the loss's gradients in the two products.
    """
    f_K = f_K.index_select(0, kept.by_feature_K)
    grad_f_K = torch.zeros_like(f_K)
    seen_a, seen_b = _seen(w_a_FaDa, w_b_FbDb, kept.features)
    for g_BD, w_FmD, seen in ((g_a_BDa, w_a_FaDa, seen_a), (g_b_BDb, w_b_FbDb, seen_b)):
        g_BD = g_BD.contiguous()
        entries, bags = kept.of_features(seen)
        grad_f_K[entries].add_(bag_dot(w_FmD, g_BD, bags))
        bag_sum(g_BD, bags, f_K[entries], _gradient(w_FmD))
    return grad_f_K


def encode_backward(
    g_K: torch.Tensor,
    x_a_BDa: torch.Tensor,
    x_b_BDb: torch.Tensor,
    w_a_FaDa: torch.Tensor,
    w_b_FbDb: torch.Tensor,
    b_F: torch.Tensor,
    kept: Kept,
    *,
    share: float,
) -> None:
    """Write the gradients of the encoder's weights into their `grad`.

    Args:
        g_K: the loss's gradient in the code, feature by feature.
        share: weight of each of the two encoders in a shared feature (see `partitioned.encode_product`).
    """
    b_F.grad = torch.segment_reduce(g_K, "sum", offsets=kept.start_F1, initial=0.0)
    seen_a, seen_b = _seen(w_a_FaDa, w_b_FbDb, kept.features)
    if share != 1:
        g_K = g_K.clone()
        g_K[kept.of_features(slice(seen_b.start, seen_a.stop))[0]] *= share
    for x_BD, w_FmD, seen in ((x_a_BDa, w_a_FaDa, seen_a), (x_b_BDb, w_b_FbDb, seen_b)):
        entries, bags = kept.of_features(seen)
        bag_sum(x_BD, bags, g_K[entries], _gradient(w_FmD))


def rows_of(w_FD: torch.Tensor, rows_Z: torch.Tensor) -> torch.Tensor:
    """Some rows of a leaf, each at most once; their gradient is added to `grad` at these rows alone."""
    out: torch.Tensor = _Rows.apply(w_FD, rows_Z)
    return out


def _gradient(w_FD: torch.Tensor) -> torch.Tensor:
    """Memory for a gradient that is about to be overwritten: that of the step before, if there is one."""
    grad = w_FD.grad
    if grad is None or grad.shape != w_FD.shape:
        w_FD.grad = grad = lasting(w_FD.shape, w_FD.dtype, w_FD.device)
    return grad


def _seen(w_a: torch.Tensor, w_b: torch.Tensor, features: int) -> tuple[slice, slice]:
    """The features that each model has."""
    return slice(0, len(w_a)), slice(features - len(w_b), features)


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
