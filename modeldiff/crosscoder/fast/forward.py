"""A training batch through the crosscoder: which entries are kept, their values, the reconstructions.

Two ways with the same function and the same gradients. `SparseForward` is what training uses: one dense product, the
encoder's, into a buffer that is made once; all else happens at the kept entries, gradients included, which are written
out. `DenseForward` is the plain formula with autograd, which the tests compare it with.

Legend: B pairs, F features, K kept entries, Da, Db widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.fast.coarse import CoarseScores
from modeldiff.crosscoder.fast.code import decode_backward, decode_kept, encode_backward
from modeldiff.crosscoder.fast.entries import Kept
from modeldiff.crosscoder.fast.rooms import Rooms
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.products import product_into
from modeldiff.crosscoder.selection import Scores, score_weights

Smallest = tuple[float | None, float | None]
Select = Callable[[Scores], tuple[torch.Tensor, Smallest]]
"""Scores -> (flat indices, ascending, of the kept entries; smallest kept scores), as `selection.pooled_topk`."""

PRE_ACTIVATIONS = "pre_activations"
"""The room of a batch's. What comes after the selection may lie inside it."""


@dataclass(frozen=True)
class Pass:
    """What became of a batch.

    Attributes:
        x: the batch (a, b).
        kept: the kept entries; f_K: their values, pair by pair.
        smallest: smallest kept scores, of the features and of the designated ones.
        xhat_a, xhat_b: reconstructions (B, D); of `DenseForward`, with the graph that led to them.
    """

    x: tuple[torch.Tensor, torch.Tensor]
    kept: Kept
    f_K: torch.Tensor
    smallest: Smallest
    xhat_a: torch.Tensor
    xhat_b: torch.Tensor

    def errors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x - xhat, (a, b); where no graph needs the reconstructions, written over them."""
        xhats = (self.xhat_a, self.xhat_b)
        e_a, e_b = (
            x_BD - xhat_BD if xhat_BD.requires_grad else torch.sub(x_BD, xhat_BD, out=xhat_BD)
            for x_BD, xhat_BD in zip(self.x, xhats, strict=True)
        )
        return e_a, e_b


class Forward(Protocol):
    """A way to run a batch, activations in normalised units, and the way back."""

    def __call__(
        self, crosscoder: Crosscoder, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, select: Select
    ) -> Pass: ...

    def backward(self, crosscoder: Crosscoder, done: Pass, g_a_BDa: torch.Tensor, g_b_BDb: torch.Tensor) -> None:
        """Set `grad` of every parameter, from a loss's gradients in the two reconstructions."""


class SparseForward:
    """Gradients and decoding only at the kept entries, without autograd."""

    def __init__(self, shards: Shards, rooms: Rooms | None = None) -> None:
        self._shards = shards
        self._rooms = rooms or Rooms()

    @torch.no_grad()
    def __call__(self, crosscoder: Crosscoder, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, select: Select) -> Pass:
        scores = self._scores(crosscoder, x_a_BDa, x_b_BDb)
        flat_K, smallest = select(scores)
        kept = Kept(flat_K, len(x_a_BDa), crosscoder.n_features)
        f_K = scores.pre(flat_K)
        del scores, flat_K  # early in a run many entries are kept, and each list of them counts
        inside = partial(self._rooms.inside, PRE_ACTIVATIONS)
        room = (inside("xhat_a", x_a_BDa), inside("xhat_b", x_b_BDb))
        decoded = decode_kept(f_K, crosscoder.w_dec_a, crosscoder.w_dec_b, kept, room)
        xhat_a, xhat_b = map(self._shards.sum, decoded)
        xhat_a += crosscoder.b_dec_a
        xhat_b += crosscoder.b_dec_b
        return Pass((x_a_BDa, x_b_BDb), kept, f_K, smallest, xhat_a, xhat_b)

    def backward(self, crosscoder: Crosscoder, done: Pass, g_a_BDa: torch.Tensor, g_b_BDb: torch.Tensor) -> None:
        """As `Forward.backward`; over several ranks, the gradient of a rank's addend is that of the sum."""
        crosscoder.b_dec_a.grad, crosscoder.b_dec_b.grad = g_a_BDa.sum(dim=0), g_b_BDb.sum(dim=0)
        g_K = decode_backward(g_a_BDa, g_b_BDb, done.f_K, crosscoder.w_dec_a, crosscoder.w_dec_b, done.kept)
        encoder = (crosscoder.w_enc_a, crosscoder.w_enc_b, crosscoder.b_enc)
        encode_backward(g_K, *done.x, *encoder, done.kept, share=crosscoder.share)

    def _scores(self, crosscoder: Crosscoder, x_a: torch.Tensor, x_b: torch.Tensor) -> Scores:
        if crosscoder.coarse:
            return CoarseScores(crosscoder, x_a, x_b, self._room(torch.bfloat16, x_a, crosscoder.n_features))
        dtype = crosscoder.matmul_dtype
        out_BF = self._room(dtype, x_a, crosscoder.n_features)
        w_a, w_b = crosscoder.w_enc_a.to(dtype), crosscoder.w_enc_b.to(dtype)
        product_BF = product_into(out_BF, x_a.to(dtype), x_b.to(dtype), w_a, w_b, crosscoder.share)
        return Scores(product_BF.float(), crosscoder.b_enc, score_weights(crosscoder))

    def _room(self, dtype: torch.dtype, x_BD: torch.Tensor, n_features: int) -> torch.Tensor:
        return self._rooms.of(PRE_ACTIVATIONS, len(x_BD), n_features, dtype, x_BD.device)


class DenseForward:
    """The formula as it stands (paper 2.2): every product over all features, gradients by autograd."""

    @torch.enable_grad()
    def __call__(self, crosscoder: Crosscoder, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, select: Select) -> Pass:
        pre_BF = crosscoder.pre_activations(x_a_BDa, x_b_BDb)
        flat_K, smallest = select(Scores(pre_BF.detach(), None, score_weights(crosscoder)))
        mask_BF = torch.zeros_like(pre_BF)
        mask_BF.view(-1)[flat_K] = 1
        f_BF = pre_BF * mask_BF  # kept entries are positive: this is the ReLU too
        xhat_a, xhat_b = crosscoder.reconstruct(f_BF)
        kept = Kept(flat_K, len(x_a_BDa), crosscoder.n_features)
        return Pass((x_a_BDa, x_b_BDb), kept, f_BF.detach().view(-1)[flat_K], smallest, xhat_a, xhat_b)

    def backward(self, crosscoder: Crosscoder, done: Pass, g_a_BDa: torch.Tensor, g_b_BDb: torch.Tensor) -> None:
        """As `Forward.backward`: through the graph that the reconstructions hold."""
        crosscoder.zero_grad()
        torch.autograd.backward((done.xhat_a, done.xhat_b), (g_a_BDa, g_b_BDb))
