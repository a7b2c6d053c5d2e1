"""What a crosscoder is trained on: the error of both reconstructions, and the auxiliary loss for dead features.

Also the rule by which pairs with extreme norms are left out.

Legend: B pairs, Da, Db widths, Z dead features; Za, Zb those of them that A, B has.
"""

from __future__ import annotations

import math

import torch

from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.fast.products import decode_product, encode_product
from modeldiff.crosscoder.fast.step import rows_of
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.workspace.ranks import Ranks

# Of errors that are squared at once: 1 MiB.
_PIECE_VALUES = 1 << 18


def inliers(x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, factor: float) -> torch.Tensor:
    """Mask (B,) of the pairs whose norm is at most `factor` times the batch's median norm, on both sides (paper B.1.4).

    The pair goes when either side is extreme: otherwise exclusive features would be rewarded for the side that is left.
    """
    norm_a_B, norm_b_B = torch.linalg.vector_norm(x_a_BDa, dim=1), torch.linalg.vector_norm(x_b_BDb, dim=1)
    keep_a_B = norm_a_B <= factor * norm_a_B.median()
    return keep_a_B & (norm_b_B <= factor * norm_b_B.median())


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
    """(B,); of large errors some rows at a time, which stay in a CPU's cache and need little memory."""
    rows = max(1, _PIECE_VALUES // max(1, e_BD.shape[1]))
    if e_BD.device.type != "cpu" or len(e_BD) <= rows:
        return e_BD.square().sum(dim=1)
    return torch.cat([e_RD.square().sum(dim=1) for e_RD in e_BD.split(rows)])


def reconstruction_gradient(e_BD: torch.Tensor, kind: str) -> torch.Tensor:
    """The gradient of `reconstruction_loss` in one side's reconstructions, minus that in its error.

    To the last bit what autograd gives; written out, it takes fewer operations.
    """
    if kind == "squared":
        return e_BD * (-2 / len(e_BD))
    norm_B1 = torch.linalg.vector_norm(e_BD, dim=1, keepdim=True)
    # Where there is no error the norm has no gradient, and 0 stands for it.
    return (e_BD / norm_B1.masked_fill_(norm_B1 == 0, math.inf)).mul_(-0.5 / len(e_BD))


def auxk_loss(
    crosscoder: Crosscoder,
    dead_Z: torch.Tensor,
    count: int,
    e: tuple[torch.Tensor, torch.Tensor],
    *,
    inputs: tuple[torch.Tensor, torch.Tensor] | None = None,
    normalised: bool = False,
    shards: Shards | None = None,
) -> torch.Tensor:
    """How badly the dead features reconstruct the error (paper 2.5): only their encoders and decoders get a gradient,
    added to what is in `grad` (see `rows_of`): go back through the reconstruction loss first.

    z = the `count` largest of the dead features' encodings, negative ones set to 0; loss = ‖e - z W_d‖², summed over
    width and sides, mean over the pairs. The error is a constant. Only the dead columns are computed.

    Args:
        e: the error (B, Da), (B, Db), activations minus reconstructions.
        dead_Z: indices of the dead features, ascending, not empty (on one of several ranks they may be).
        inputs: None encodes the error without bias, as in the paper; otherwise these activations (a, b) are encoded,
            with bias, as in the public code.
        normalised: divide by the error's variance, as the public code does.
        shards: where other ranks have dead features, too.
    """
    e_a_BDa, e_b_BDb = e[0].detach(), e[1].detach()
    config = crosscoder.config
    dead_Za = dead_Z[dead_Z < config.n_a]
    dead_Zb = dead_Z[dead_Z >= config.n_a_only] - config.n_a_only
    dtype = crosscoder.matmul_dtype
    w_enc_a, w_enc_b = rows_of(crosscoder.w_enc_a, dead_Za), rows_of(crosscoder.w_enc_b, dead_Zb)
    if inputs is None:
        encoded, bias_Z = (e_a_BDa, e_b_BDb), e_a_BDa.new_zeros(len(dead_Z))
    else:
        encoded, bias_Z = inputs, rows_of(crosscoder.b_enc, dead_Z)
    pre_BZ = encode_product(*encoded, w_enc_a, w_enc_b, bias_Z, share=crosscoder.encoder_share, dtype=dtype)
    shards = shards or Shards(Ranks(), config)
    z_BZ = torch.relu(shards.top_per_pair(pre_BZ, count))
    w_dec_a, w_dec_b = rows_of(crosscoder.w_dec_a, dead_Za), rows_of(crosscoder.w_dec_b, dead_Zb)
    ehat_a, ehat_b = map(shards.sum, decode_product(z_BZ, w_dec_a, w_dec_b, dtype=dtype))
    loss = reconstruction_loss(ehat_a - e_a_BDa, ehat_b - e_b_BDb, "squared")
    if not normalised:
        return loss
    return loss / reconstruction_loss(e_a_BDa - e_a_BDa.mean(dim=0), e_b_BDb - e_b_BDb.mean(dim=0), "squared")
