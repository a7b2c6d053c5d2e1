"""What a crosscoder is trained on, and which pairs are left out.

Legend: B pairs, F features, Da, Db, D widths, Z dead features; Za, Zb those of them that A, B has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from modeldiff.crosscoder.fast.sparse import OneProcess
from modeldiff.crosscoder.model import Both, Crosscoder, encode_into
from modeldiff.sides import SIDES

# Of errors that are squared at once, 1 MiB.
_PIECE_VALUES = 1 << 18


def inliers(x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (B,): of the pairs whose norm is at most `factor` times the batch's median norm, on both sides (paper
    B.1.4), and of those whose norms are numbers: what is not finite is never an inlier.

    The pair goes when either side is extreme: otherwise exclusive features would be rewarded for the side that is left.
    """
    norm_a_B, norm_b_B = (torch.linalg.vector_norm(x_BD, dim=1) for x_BD in (x_a_BDa, x_b_BDb))
    keep_a_B, keep_b_B = (norm_B <= factor * norm_B.median() for norm_B in (norm_a_B, norm_b_B))
    return keep_a_B & keep_b_B, (norm_a_B + norm_b_B).isfinite()


def reconstruction_loss(e_a_BDa: torch.Tensor, e_b_BDb: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean over the pairs of the error's size.

    Args:
        e_a_BDa, e_b_BDb: activations minus reconstructions, normalised units.
        kind: `squared`, the sum of the squares over width and sides (paper eq. 2); `norm`, the mean over the sides of
            the unsquared norm (the public code).
    """
    if kind == "squared":
        return (_squared_norms(e_a_BDa) + _squared_norms(e_b_BDb)).mean()
    return (e_a_BDa.norm(dim=1) + e_b_BDb.norm(dim=1)).mean() / 2


def _squared_norms(e_BD: torch.Tensor) -> torch.Tensor:
    """(B,); some rows at a time, which stay in a CPU's cache and need little memory."""
    rows = max(1, _PIECE_VALUES // max(1, e_BD.shape[1]))
    if e_BD.device.type != "cpu" or len(e_BD) <= rows:
        return e_BD.square().sum(dim=1)
    return torch.cat([e_RD.square().sum(dim=1) for e_RD in e_BD.split(rows)])


def reconstruction_gradient(e_BD: torch.Tensor, kind: str, out_BD: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient of `reconstruction_loss` in one side's reconstructions, to the bit as autograd's, into `out_BD`."""
    if kind == "squared":
        return torch.mul(e_BD, -2 / len(e_BD), out=out_BD)
    norm_B1 = torch.linalg.vector_norm(e_BD, dim=1, keepdim=True)
    # Where there is no error the norm has no gradient, and 0 stands for it.
    return torch.div(e_BD, norm_B1.masked_fill_(norm_B1 == 0, math.inf), out=out_BD).mul_(-0.5 / len(e_BD))


@torch.no_grad()
def add_auxk(
    crosscoder: Crosscoder,
    dead_Z: torch.Tensor,
    seen: Sequence[int],
    count: int,
    e: Both,
    *,
    weight: float = 1.0,
    normalised: bool = False,
    processes: OneProcess | None = None,
) -> torch.Tensor:
    """How badly the dead features reconstruct the error (paper 2.5). `weight` times the gradient of this loss is added
    to what is in `grad` of their encoders and decoders.

    z = the `count` largest of the dead features' encodings of the error, without bias, negative ones set to 0;
    loss = ‖e - z W_d‖², summed over width and sides, mean over the pairs. The error is a constant.

    Args:
        e: the error (B, Da), (B, Db), activations minus reconstructions.
        dead_Z: indices of the dead features, ascending, not empty (on one of several processes they may be).
        seen: how many of them A and B have.
        normalised: divide by the error's variance, as the public code does.
        processes: those of the run, where others have dead features, too.
    """
    processes, dtype = processes or OneProcess(), crosscoder.matmul_dtype
    inside = [slice(0, seen[0]), slice(len(dead_Z) - seen[1], len(dead_Z))]
    rows, w_enc, w_dec = [], [], []
    for side, mine in zip(SIDES, inside, strict=True):
        rows.append(dead_Z[mine] - crosscoder.sees(side).start)
        w_enc.append(crosscoder.encoder(side).index_select(0, rows[-1]).to(dtype))
        w_dec.append(crosscoder.decoder(side).index_select(0, rows[-1]).to(dtype))
    shared_Z = slice(inside[1].start, inside[0].stop)
    e_low = [e_BD.to(dtype) for e_BD in e]
    pre_BZ = encode_into(e_low[0].new_empty(len(e[0]), len(dead_Z)), *e_low, *w_enc, share=crosscoder.encoder_share)
    z_BZ = torch.relu(processes.top_per_pair(pre_BZ.float(), count))
    z_low = z_BZ.to(dtype)
    miss = [processes.sum((z_low[:, inside[at]] @ w_dec[at]).float()) - e[at] for at in (0, 1)]
    loss = reconstruction_loss(miss[0], miss[1], "squared")
    step = torch.full_like(loss, weight)
    if normalised:
        variance = reconstruction_loss(e[0] - e[0].mean(dim=0), e[1] - e[1].mean(dim=0), "squared")
        loss, step = loss / variance, step / variance
    g = [(miss_BD * (2 * (step / len(miss_BD)))).to(dtype) for miss_BD in miss]
    g_BZ = torch.empty_like(z_low)
    only_b_Z, from_b = slice(inside[0].stop, None), len(rows[0]) - shared_Z.start
    torch.mm(g[0], w_dec[0].T, out=g_BZ[:, inside[0]])
    torch.mm(g[1], w_dec[1][from_b:].T, out=g_BZ[:, only_b_Z])
    g_BZ[:, shared_Z].addmm_(g[1], w_dec[1][:from_b].T)
    g_BZ.masked_fill_(z_BZ <= 0, 0.0)
    for at, side in enumerate(SIDES):
        grad_ZD = g_BZ[:, inside[at]].T @ e_low[at]
        grad_ZD[shared_Z.start - inside[at].start : shared_Z.stop - inside[at].start] *= crosscoder.encoder_share
        decoder_ZD = z_low[:, inside[at]].T @ g[at]
        for w_FD, more_ZD in ((crosscoder.encoder(side), grad_ZD), (crosscoder.decoder(side), decoder_ZD)):
            assert w_FD.grad is not None, "the gradient of the reconstructions comes first"
            w_FD.grad.index_add_(0, rows[at], more_ZD.to(w_FD.dtype))
    return loss
