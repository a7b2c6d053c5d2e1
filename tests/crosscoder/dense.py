"""The reference for `SparseStep`: the formula as it stands (paper 2.2), every product over all features, gradients by
autograd."""

from __future__ import annotations

import torch

from modeldiff.crosscoder.fast.sparse import Entries, OneProcess, Pass, SparseStep
from modeldiff.crosscoder.fast.topk import Scores
from modeldiff.crosscoder.model import Both, Crosscoder


def dense_pre(crosscoder: Crosscoder, x_a: torch.Tensor, x_b: torch.Tensor) -> torch.Tensor:
    """pre_BF with autograd: weights that do not exist as zeros."""
    a, b = crosscoder.sees("a"), crosscoder.sees("b")
    share_F = torch.ones(crosscoder.n_features, device=x_a.device)
    share_F[crosscoder.slices["shared"]] = crosscoder.encoder_share
    w_a = torch.cat([crosscoder.w_enc_a, crosscoder.w_enc_a.new_zeros(crosscoder.n_features - a.stop, x_a.shape[1])])
    w_b = torch.cat([crosscoder.w_enc_b.new_zeros(b.start, x_b.shape[1]), crosscoder.w_enc_b])
    return (x_a @ w_a.T + x_b @ w_b.T) * share_F + crosscoder.b_enc


def dense_reconstruction(crosscoder: Crosscoder, f_BF: torch.Tensor) -> Both:
    """(xhat_a, xhat_b) with autograd."""
    a, b = crosscoder.sees("a"), crosscoder.sees("b")
    xhat_a = f_BF[:, a] @ crosscoder.w_dec_a + crosscoder.b_dec_a
    return xhat_a, f_BF[:, b] @ crosscoder.w_dec_b + crosscoder.b_dec_b


class DenseStep(SparseStep):
    """Reconstructions hold the graph that led to them; `backward` goes back through it."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        super().__init__(crosscoder, OneProcess())
        self.crosscoder = crosscoder

    @torch.enable_grad()
    def forward(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, count: int) -> Pass:
        pre_BF = dense_pre(self.crosscoder, x_a_BDa, x_b_BDb)
        scores = Scores(pre_BF.detach(), None, self.crosscoder.score_weights())
        flat_K, smallest = OneProcess().select(scores, count, self.crosscoder.config)
        mask_BF = torch.zeros_like(pre_BF)
        mask_BF.view(-1)[flat_K] = 1
        f_BF = pre_BF * mask_BF  # selected entries are positive: this is the ReLU too
        self._xhat = dense_reconstruction(self.crosscoder, f_BF)
        entries = Entries(flat_K, len(x_a_BDa), self.crosscoder.n_features)
        xhat_a, xhat_b = self._xhat
        spare = torch.empty_like(xhat_a), torch.empty_like(xhat_b)
        return Pass(entries, f_BF.detach().view(-1)[flat_K], smallest, (xhat_a.detach(), xhat_b.detach()), spare)

    @torch.no_grad()
    def decode(self, entries: Entries, f_K: torch.Tensor, _out: object = None) -> Both:
        return dense_reconstruction(self.crosscoder, dense(entries, f_K))

    def backward(self, x: Both, done: Pass, g: Both) -> None:  # noqa: ARG002
        self.crosscoder.zero_grad()
        torch.autograd.backward(self._xhat, g)


def dense(entries: Entries, value_K: torch.Tensor) -> torch.Tensor:
    """(B, F) with the values, listed pair by pair, at their entries and 0 elsewhere."""
    out_BF = value_K.new_zeros(entries.pairs, entries.features)
    out_BF[entries.row_K, entries.column_K] = value_K
    return out_BF
