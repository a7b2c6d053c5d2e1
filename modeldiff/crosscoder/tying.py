"""Tied decoders of designated shared features: the DSF baseline.

A DSF crosscoder names its first `n_designated` features as shared and holds their two decoder rows together, "by
decoder weight- or norm-sharing" (Mishra-Sharma et al. 2025, paper 12.2), while selection favours them (selection.py).
The DFC paper compares against shared vectors (paper 5.2, its B.3). Those cannot fit two models whose spaces differ by a
rotation; shared norms can. Both ties hold in normalised units.

Legend: n designated features, D width of one model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from modeldiff.crosscoder.model import Crosscoder


@torch.no_grad()
def tie_initial(crosscoder: Crosscoder) -> None:
    """Make B's designated rows start as A's (vectors), encoders included, which start as the decoders.

    Initial norms are equal already.
    """
    config = crosscoder.config
    if config.tie == "vectors":
        crosscoder.w_enc_b[: config.n_designated] = crosscoder.w_enc_a[: config.n_designated]
        crosscoder.w_dec_b[: config.n_designated] = crosscoder.w_dec_a[: config.n_designated]


@torch.no_grad()
def tie_gradients(crosscoder: Crosscoder) -> None:
    """Before the gradient is clipped: a tied vector gets the sum of the gradients of both sides (vectors).

    A's row holds it, and B's row, which `tie_rows` makes a copy, gets none: the norm of the gradient counts the vector
    once, as the one parameter that it is.
    """
    config = crosscoder.config
    if config.tie == "vectors":
        grad_a_FD, grad_b_FD = crosscoder.w_dec_a.grad, crosscoder.w_dec_b.grad
        assert grad_a_FD is not None
        assert grad_b_FD is not None
        grad_a_FD[: config.n_designated] += grad_b_FD[: config.n_designated]
        grad_b_FD[: config.n_designated] = 0


@torch.no_grad()
def tie_rows(crosscoder: Crosscoder) -> None:
    """After the optimizer's step: B's rows are A's (vectors), or both have the mean of their two norms (norms)."""
    config = crosscoder.config
    if config.tie == "none":
        return
    rows_a_nD, rows_b_nD = crosscoder.w_dec_a[: config.n_designated], crosscoder.w_dec_b[: config.n_designated]
    if config.tie == "vectors":
        rows_b_nD.copy_(rows_a_nD)
        return
    norm_a_n1, norm_b_n1 = rows_a_nD.norm(dim=1, keepdim=True), rows_b_nD.norm(dim=1, keepdim=True)
    mean_n1, tiny = (norm_a_n1 + norm_b_n1) / 2, torch.finfo(norm_a_n1.dtype).tiny
    rows_a_nD *= mean_n1 / norm_a_n1.clamp_min(tiny)
    rows_b_nD *= mean_n1 / norm_b_n1.clamp_min(tiny)
