"""The encoder's product of a training batch on a GPU, of matrices in bfloat16 and with a result in float32.

A sum of two products in bfloat16 is rounded twice, and among numbers of 8 bits many scores are equal, of which a
selection takes the first ones. Here the shared features have one product, of both models' widths side by side, which is
summed in float32; its weights are put side by side as they are made bfloat16, which they have to be anyway.

Legend: B pairs, F features, D = Da + Db widths, S shared features.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder.model import Crosscoder


def multiply_into(out_BF: torch.Tensor, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, crosscoder: Crosscoder) -> None:
    """`out_BF`, float32: what `encode_into` makes of float32 matrices, of these ones rounded to `matmul_dtype`."""
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
