"""A training batch through the crosscoder and back, with work only at the active entries and without autograd.

Equal to the dense formula (paper 2.2) with autograd, which the tests compare it with, in values and gradients, at a
fraction of the work: with k of F features active, dense products spend (F - k) / F of it on zeros. One product stays
dense, the encoder's.

Legend: B pairs, F features, K active entries, Da, Db widths, Z dead features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.fast.bags import bag_sum, bag_sum_and_dot
from modeldiff.crosscoder.fast.entries import Entries
from modeldiff.crosscoder.fast.products import product_into
from modeldiff.crosscoder.fast.scores import Scores
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.sides import SIDES

Both = tuple[torch.Tensor, torch.Tensor]
"""One of A, one of B."""


@dataclass(frozen=True)
class Pass:
    """What became of a batch.

    Attributes:
        entries: the active ones; f_K: their values, pair by pair.
        smallest: smallest scores that were selected, of the features and of the designated ones; None: none was.
        xhat: reconstructions (B, Da), (B, Db).
    """

    entries: Entries
    f_K: torch.Tensor
    smallest: tuple[float | None, float | None]
    xhat: Both


class SparseStep:
    """Runs batches, activations in normalised units.

    Args:
        shards: the ranks of the run; `crosscoder` is this rank's part.
    """

    def __init__(self, crosscoder: Crosscoder, shards: Shards) -> None:
        self._crosscoder, self._shards = crosscoder, shards
        self._product: torch.Tensor | None = None

    @torch.no_grad()
    def forward(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, count: int) -> Pass:
        """Select `count` active entries, and reconstruct from them."""
        scores = self._scores(x_a_BDa, x_b_BDb)
        flat_K, smallest = self._shards.select(scores, count)
        entries = Entries(flat_K, len(x_a_BDa), self._crosscoder.n_features)
        f_K = scores.pre(flat_K)
        return Pass(entries, f_K, smallest, self.decode(entries, f_K))

    @torch.no_grad()
    def decode(self, entries: Entries, f_K: torch.Tensor) -> Both:
        """Reconstructions of a code."""
        crosscoder, xhat = self._crosscoder, []
        for side in SIDES:
            indices, bags = entries.of_pairs(crosscoder.sees(side))
            xhat_BD = self._shards.sum(bag_sum(crosscoder.decoder(side), bags, f_K[indices]))
            xhat.append(xhat_BD.add_(crosscoder.decoder_bias(side)))
        return xhat[0], xhat[1]

    @torch.no_grad()
    def backward(self, x: Both, done: Pass, g: Both) -> None:
        """Set `grad` of every parameter, from a loss's gradients in the two reconstructions. Over several ranks, the
        gradient of a rank's addend is that of the sum."""
        crosscoder, entries = self._crosscoder, done.entries
        crosscoder.zero_grad()  # before new ones are made: these are as large as the weights
        f_K = done.f_K.index_select(0, entries.by_feature_K)
        g_K = torch.zeros_like(f_K)
        for side, g_BD in zip(SIDES, g, strict=True):
            crosscoder.decoder_bias(side).grad = g_BD.sum(dim=0)
            mine, bags = entries.of_features(crosscoder.sees(side))
            w_dec = crosscoder.decoder(side)
            w_dec.grad, dot_K = bag_sum_and_dot(g_BD, bags, f_K[mine], w_dec)
            g_K[mine] += dot_K
        crosscoder.b_enc.grad = torch.segment_reduce(g_K, "sum", offsets=entries.start_F1, initial=0.0)
        if crosscoder.encoder_share != 1:
            g_K[entries.of_features(crosscoder.slices["shared"])[0]] *= crosscoder.encoder_share
        for side, x_BD in zip(SIDES, x, strict=True):
            mine, bags = entries.of_features(crosscoder.sees(side))
            crosscoder.encoder(side).grad = bag_sum(x_BD, bags, g_K[mine])

    def _scores(self, x_a: torch.Tensor, x_b: torch.Tensor) -> Scores:
        crosscoder, dtype = self._crosscoder, self._crosscoder.matmul_dtype
        size = len(x_a) * crosscoder.n_features
        # Memory for the largest matrix is kept: new memory is slow, the system clears every page of it.
        if self._product is None or self._product.numel() < size:
            self._product = None
            self._product = torch.empty(size, dtype=dtype, device=x_a.device)
        out_BF = self._product[:size].view(len(x_a), crosscoder.n_features)
        w_a, w_b = crosscoder.w_enc_a.to(dtype), crosscoder.w_enc_b.to(dtype)
        product_into(out_BF, x_a.to(dtype), x_b.to(dtype), w_a, w_b, crosscoder.encoder_share)
        return Scores(out_BF.float(), crosscoder.b_enc, crosscoder.score_weights())


def rows_of(w_FD: torch.Tensor, rows_Z: torch.Tensor) -> torch.Tensor:
    """Some rows of a leaf, each at most once; their gradient is added to `grad` at these rows alone."""
    out: torch.Tensor = _Rows.apply(w_FD, rows_Z)
    return out


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_FD: torch.Tensor, rows_Z: torch.Tensor) -> torch.Tensor:
        ctx.w_FD, ctx.rows_Z = w_FD, rows_Z
        return w_FD.detach().index_select(0, rows_Z)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, None]:
        if ctx.w_FD.grad is None:
            ctx.w_FD.grad = torch.zeros_like(ctx.w_FD)
        ctx.w_FD.grad.index_add_(0, ctx.rows_Z, grads[0])
        return None, None
