"""Directions of one model, read from a file, and the rules that move them to the other one (paper 8.2, 13.1).

A crosscoder's decoder reconstructs normalised activations, raw x scale. Everything here is in raw units: a decoder row
is divided by its model's scale, so that a coefficient means the same feature activation on both sides.

Legend: N directions, F shared features, K chosen ones, D width of a model (Ds source, Dt target).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import DamagedError, InputError
from modeldiff.sides import OTHER, SIDES


def read_vectors(path: Path, width: int, model: str) -> Tensor:
    """The directions (N, D) float32 of a .npy or .safetensors file with one array (D,) or (N, D); no pickle is read.
    Raises InputError: no such file, or not one array of finite floating-point numbers of that width; DamagedError: the
    file cannot be read."""
    if not path.is_file():
        raise InputError(f"--vector: there is no file {path}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            tensors = [torch.from_numpy(array.astype(np.float32)) if array.dtype.kind == "f" else torch.zeros(0).int()]
        elif path.suffix == ".safetensors":
            tensors = list(load_file(path).values())
        else:
            raise InputError(f"--vector: {path} ends in '{path.suffix}': expected .npy or .safetensors")
    except (SafetensorError, OSError, EOFError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read as an array, it may be truncated ({error})") from None
    if len(tensors) != 1 or not tensors[0].is_floating_point():
        raise InputError(f"--vector: expected one array of floating-point numbers in {path}")
    (found,) = tensors
    if found.ndim not in (1, 2) or found.shape[-1] != width or not found.numel():
        raise InputError(
            f"--vector: {path} has shape {tuple(found.shape)}: expected ({width},) or (N, {width}), the width of "
            f"model {model}"
        )
    vectors_ND = found.reshape(-1, width).float()
    if not vectors_ND.isfinite().all() or not (vectors_ND.norm(dim=1) > 0).all():
        raise InputError(f"--vector: {path} holds values that are not finite, or a vector of zeros")
    return vectors_ND


@dataclass(frozen=True)
class Decoders:
    """The shared features' rows in both models, raw units, float32."""

    source_FD: Tensor
    target_FD: Tensor
    ids_F: Tensor
    """int64: their numbers in the crosscoder."""

    @classmethod
    def of(cls, crosscoder: Crosscoder, source: str, alive_F: Tensor) -> Decoders:
        """Those of a crosscoder, read from model "a" or "b".

        alive_F: (all features) bool; a feature that never fires has a decoder that no data ever shaped, so it is left
        out. A row without length has no direction, and is left out too.
        """
        shared = crosscoder.slices["shared"]
        rows = {}
        for side in SIDES:
            start = crosscoder.sees(side).start
            mine_FD = crosscoder.decoder(side).detach()[shared.start - start : shared.stop - start]
            rows[side] = crosscoder.config.raw_direction(side, mine_FD.float().cpu())
        kept_F = (rows[source].norm(dim=1) > 0) & alive_F[shared]
        ids_F = torch.arange(shared.start, shared.stop)[kept_F]
        return cls(rows[source][kept_F], rows[OTHER[source]][kept_F], ids_F)


def paper_rule(decoders: Decoders, top: int, v_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The DFC paper's rule (eq. 13-17): of the `top` shared features whose source decoder has the highest cosine with
    the direction, the mean of the target decoders, weighted by that cosine.

    Decoders are averaged as long as they are, as in the paper, each in the crosscoder's normalised units (a model's
    scale is common to all of its rows, and is lost when the result is rescaled).

    Returns:
        The directions (N, Dt) in the target; numbers (N, K) of the features used, strongest first, and their cosines.
    """
    cosine_NF = unit(v_ND) @ decoders.source_FD.T / decoders.source_FD.norm(dim=1)
    weight_NK, at_NK = cosine_NF.topk(min(top, len(decoders.ids_F)), dim=1)
    # Where the cosines sum to nothing the mean has no sign; the paper's features all lean towards the direction.
    share_NK = weight_NK / weight_NK.sum(dim=1, keepdim=True).abs().clamp_min(torch.finfo(torch.float32).tiny)
    target_ND = (share_NK[:, None] @ decoders.target_FD[at_NK])[:, 0]
    return target_ND, decoders.ids_F[at_NK], weight_NK


def unit(x_ND: Tensor) -> Tensor:
    """Rows of norm 1; a row of zeros stays one."""
    return x_ND / x_ND.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x_ND.dtype).tiny)


def cosine(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    """Row by row (broadcast), in float64; 0 where one of them is a row of zeros."""
    return (unit(one_ND.double()) * unit(other_ND.double())).sum(dim=-1)
