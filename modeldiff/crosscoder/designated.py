"""The DSF baseline (paper 5.2): designated features, the first ones of a crosscoder without exclusive features, have a
selection of their own and decoder rows that are tied.

"By decoder weight- or norm-sharing" (Mishra-Sharma et al. 2025, paper 12.2), in normalised units. The DFC paper
compares with shared vectors (5.2, B.3), which cannot fit models whose spaces differ by a rotation; shared norms can.

Legend: F features, K active entries, n designated features, D width of one model.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.fast.topk import Scores, Smallest
from modeldiff.crosscoder.model import Crosscoder


def pooled_topk(scores: Scores, count: int, config: CrosscoderConfig) -> tuple[torch.Tensor, Smallest]:
    """Flat indices, ascending, of the `count` active entries, and the smallest scores among them.

    Designated features and the others are two pools with a BatchTopK and a threshold each. The designated ones get
    `designated_k * n / F` of the entries, so `designated_k` times their share, and the others the rest, also what the
    designated ones have no positive score for. The total stays `count`: the paper leaves open whether the larger k of
    the subset comes on top (5.2), and architectures are compared at equal L0.
    """
    n, n_features = config.n_designated, config.n_features
    kept_d, least_d = scores.columns(slice(n)).topk(round(config.designated_k * n / n_features * count))
    kept_o, least_o = scores.columns(slice(n, None)).topk(count - len(kept_d))
    flat_d = kept_d // n * n_features + kept_d % n
    flat_o = kept_o // max(1, n_features - n) * n_features + kept_o % max(1, n_features - n) + n
    return torch.cat([flat_d, flat_o]).sort().values, (least_o, least_d)


@torch.no_grad()
def tie_gradients(crosscoder: Crosscoder) -> None:
    """Before the gradient is clipped: a tied vector gets the sum of the gradients of both sides.

    A's row holds it, and B's row, which `tie` makes a copy, gets none: the norm of the gradient counts the vector
    once, as the one parameter that it is.
    """
    grad_a_FD, grad_b_FD, n = crosscoder.w_dec_a.grad, crosscoder.w_dec_b.grad, crosscoder.config.n_designated
    if crosscoder.config.tie == "vectors" and grad_a_FD is not None and grad_b_FD is not None:
        grad_a_FD[:n] += grad_b_FD[:n]
        grad_b_FD[:n] = 0


@torch.no_grad()
def tie(crosscoder: Crosscoder) -> None:
    """After the optimizer's step: B's rows are A's (vectors), or both have the mean of their two norms (norms)."""
    n = crosscoder.config.n_designated
    rows_a_nD, rows_b_nD = crosscoder.w_dec_a[:n], crosscoder.w_dec_b[:n]
    if crosscoder.config.tie == "vectors":
        rows_b_nD.copy_(rows_a_nD)
        return
    norm_a_n1, norm_b_n1 = rows_a_nD.norm(dim=1, keepdim=True), rows_b_nD.norm(dim=1, keepdim=True)
    mean_n1, tiny = (norm_a_n1 + norm_b_n1) / 2, torch.finfo(norm_a_n1.dtype).tiny
    rows_a_nD *= mean_n1 / norm_a_n1.clamp_min(tiny)
    rows_b_nD *= mean_n1 / norm_b_n1.clamp_min(tiny)
