"""Crosscoders of crosscode: `ModelHookpointAcausalCrosscoder` of two models and one hookpoint, from its `save`.

Tensors: _W_enc_XiDiL (2, 1, D, F), _W_dec_LXoDo (F, 2, 1, D), b_enc_L (F,) and _b_dec_XoDo (2, 1, D), which may be
absent; with JumpReLU _activation_fn.log_threshold_L (F,). model_cfg.yaml names the activation function. A scale of the
activations is part of the weights when the trainer has written the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from modeldiff.errors import DamagedError, InputError
from modeldiff.interchange.dictionary import Dictionary
from modeldiff.interchange.files import Source

_JUMP = "_activation_fn.log_threshold_L"
_TENSORS = (
    "_W_enc_XiDiL", "_W_dec_LXoDo", "b_enc_L", "_b_dec_XoDo", _JUMP,
    "is_folded", "folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo",
)  # fmt: skip
_K = {"TopkActivation": "k", "BatchTopkActivation": "k_per_example"}


def fits(source: Source) -> bool:
    return "_W_enc_XiDiL" in source.tensors


def read(source: Source) -> Dictionary:
    source.only(*_TENSORS)
    shape = tuple(source.tensors["_W_enc_XiDiL"].shape)
    if len(shape) != 4 or shape[:2] != (2, 1):
        raise InputError(
            f"{source.name} has encoders of shape {shape}; crosscoders of two models and one hookpoint can be compared"
        )
    e_LDF = source.take("_W_enc_XiDiL", 2, 1, None, None)[:, 0]
    _, width, n_features = e_LDF.shape
    w_FLD = source.take("_W_dec_LXoDo", n_features, 2, 1, width)[:, :, 0]
    b_F, b_LD = torch.zeros(n_features), torch.zeros(2, width)
    if "b_enc_L" in source.tensors:
        b_F = source.take("b_enc_L", n_features)
    if "_b_dec_XoDo" in source.tensors:
        b_LD = source.take("_b_dec_XoDo", 2, 1, width)[:, 0]
    made = Dictionary.stacked(e_LDF, w_FLD.transpose(0, 1), b_F, b_LD)
    if _JUMP in source.tensors:
        # A feature is active above its threshold: where it is 1 in units of that.
        made.score_F, made.threshold = (-source.take(_JUMP, n_features).double()).exp(), 1.0
        return made
    function = source.setting("activation_fn", dict, {})
    name, values = function.get("classname"), function.get("cfg")
    if name in _K and isinstance(values, Mapping):
        made.k, made.per_pair = values.get(_K[name]), True
        if not isinstance(made.k, int) or not 1 <= made.k <= n_features:
            raise DamagedError(f"the config beside {source.path}: 'k' must be 1 to {n_features}, found {made.k}")
    elif name != "ReLUActivation":
        raise InputError(
            f"{source.name} has the activation function {name!r}; JumpReLU, ReLU, TopK and BatchTopK can be read, from "
            "the tensors or the model_cfg.yaml beside them"
        )
    return made
