"""The encoder's product of a training batch, with a result in float32.

Legend: B pairs, F features, M some of them, S shared ones, D = Da + Db widths.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder.model import Crosscoder, encode_into


@torch.no_grad()
def multiply_into(out_BF: torch.Tensor, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, crosscoder: Crosscoder) -> None:
    """`out_BF`: what `encode_into` makes of float32 activations in `matmul_dtype`."""
    dtype = crosscoder.matmul_dtype
    if dtype != torch.float32 and out_BF.device.type == "cuda":
        multiply_side_by_side_into(out_BF, x_a_BDa, x_b_BDb, crosscoder)
        return
    low_BF = out_BF if dtype == torch.float32 else torch.empty_like(out_BF, dtype=dtype)
    tensors = (tensor.to(dtype) for tensor in (x_a_BDa, x_b_BDb, crosscoder.w_enc_a, crosscoder.w_enc_b))
    encode_into(low_BF, *tensors, share=crosscoder.encoder_share)
    if low_BF is not out_BF:
        out_BF.copy_(low_BF)


@torch.no_grad()
def multiply_side_by_side_into(
    out_BF: torch.Tensor, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, crosscoder: Crosscoder
) -> None:
    """For a GPU, and less rounded: a sum of two products in bfloat16 is rounded twice, and among numbers of 8 bits many
    scores are equal, of which a selection takes the first ones. Here the shared features have one product, of both
    models' widths side by side, summed in float32; the weights have to be copied as bfloat16 in any case."""
    dtype, slices, width_a = crosscoder.matmul_dtype, crosscoder.slices, x_a_BDa.shape[1]
    first, shared = slices["shared"].start, crosscoder.sizes["shared"]
    x_BD = torch.cat([x_a_BDa.to(dtype), x_b_BDb.to(dtype)], dim=1)
    w_SD = x_BD.new_empty(shared, x_BD.shape[1])
    w_SD[:, :width_a].copy_(crosscoder.w_enc_a[first:])
    w_SD[:, width_a:].copy_(crosscoder.w_enc_b[:shared])
    _multiply(out_BF[:, slices["shared"]], x_BD * crosscoder.encoder_share, w_SD)
    _multiply(out_BF[:, slices["A"]], x_BD[:, :width_a], crosscoder.w_enc_a[:first].to(dtype))
    _multiply(out_BF[:, slices["B"]], x_BD[:, width_a:], crosscoder.w_enc_b[shared:].to(dtype))


def _multiply(out_BM: torch.Tensor, x_BD: torch.Tensor, w_MD: torch.Tensor) -> None:
    if not len(w_MD):
        return
    if x_BD.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype_out"):  # torch 2.8
        torch.mm(x_BD, w_MD.T, out_dtype=out_BM.dtype, out=out_BM)
    else:
        out_BM.copy_(x_BD @ w_MD.T)
