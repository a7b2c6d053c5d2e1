"""The reference for `SparseStep`: the formula as it stands (paper 2.2), every product over all features, gradients by
autograd."""

from __future__ import annotations

import torch
from modeldiff.crosscoder.fast.entries import Entries
from modeldiff.crosscoder.fast.scores import Scores
from modeldiff.crosscoder.fast.step import Both, Pass

from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.workspace.ranks import Ranks


class DenseStep:
    """Reconstructions hold the graph that led to them; `backward` goes back through it."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self.crosscoder = crosscoder
        self._shards = Shards(Ranks(), crosscoder.config)

    @torch.enable_grad()
    def forward(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, count: int) -> Pass:
        pre_BF = self.crosscoder.pre_activations(x_a_BDa, x_b_BDb)
        scores = Scores(pre_BF.detach(), None, self.crosscoder.score_weights())
        flat_K, smallest = self._shards.select(scores, count)
        mask_BF = torch.zeros_like(pre_BF)
        mask_BF.view(-1)[flat_K] = 1
        f_BF = pre_BF * mask_BF  # selected entries are positive: this is the ReLU too
        self._xhat = self.crosscoder.reconstruct(f_BF)
        entries = Entries(flat_K, len(x_a_BDa), self.crosscoder.n_features)
        xhat_a, xhat_b = self._xhat
        return Pass(entries, f_BF.detach().view(-1)[flat_K], smallest, (xhat_a.detach(), xhat_b.detach()))

    @torch.no_grad()
    def decode(self, entries: Entries, f_K: torch.Tensor) -> Both:
        return self.crosscoder.reconstruct(dense(entries, f_K))

    def backward(self, x: Both, done: Pass, g: Both) -> None:  # noqa: ARG002
        self.crosscoder.zero_grad()
        torch.autograd.backward(self._xhat, g)


def dense(entries: Entries, value_K: torch.Tensor) -> torch.Tensor:
    """(B, F) with the values, listed pair by pair, at their entries and 0 elsewhere."""
    out_BF = value_K.new_zeros(entries.pairs, entries.features)
    out_BF[entries.row_K, entries.column_K] = value_K
    return out_BF
