"""Crosscoders of dictionary_learning (science-of-finetuning's) and of dfc_learning, the DFC authors' fork of that.

Tensors, L = 2 models of equal width D, F features:
    encoder.weight (L, D, F), encoder.bias (F,), decoder.weight (L, F, D), decoder.bias (L, D)
    code_normalization_id       by which norm of the decoder an activation is multiplied: see _NORMS
    threshold, k                BatchTopK alone: active is what exceeds the threshold after that; -1: none was learned
    activation_mean (L, D), activation_global_scale (L,)   (x - mean) * scale goes in; mean NaN: x goes in
A dedicated feature's weights in the other model are zero, and stay so in training: no mask is stored. dfc_learning's
classes have them in the order A | B | shared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import DamagedError, InputError
from modeldiff.interchange.dictionary import Dictionary, pad
from modeldiff.interchange.files import Source
from modeldiff.sides import SIDES
from modeldiff.workspace.files import write_json

_NORMS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
_OF_SELECTION = {"activation": 4, "l2": 2, "sum": 1}
_TENSORS = (
    "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "code_normalization_id", "threshold", "k",
    "activation_mean", "activation_std", "activation_global_scale", "target_rms",
)  # fmt: skip
_EPSILON = 1e-8  # that reconstructions are divided by the scale plus this


def fits(source: Source) -> bool:
    return "encoder.weight" in source.tensors and "decoder.weight" in source.tensors


def read(source: Source) -> Dictionary:
    source.only(*_TENSORS)
    e_LDF = source.take("encoder.weight", None, None, None)
    n_models, width, n_features = e_LDF.shape
    if n_models != 2:
        raise InputError(
            f"{source.name} reads {n_models} layers or models; only crosscoders of two models can be compared"
        )
    if source.setting("encoder_layers", list) not in (None, [0, 1]):
        raise InputError(f"{source.name}: 'encoder_layers' are not those of two models, each encoded by its own")
    w_LFD = source.take("decoder.weight", 2, n_features, width)
    b_F, b_LD = source.take("encoder.bias", n_features), source.take("decoder.bias", 2, width)
    made = Dictionary.stacked(e_LDF, w_LFD, b_F, b_LD, layers=dict.fromkeys(SIDES, source.setting("layer", int)))
    made.k = int(source.number("k")) if "k" in source.tensors else None
    if "threshold" in source.tensors:
        score_F = _score(source, w_LFD)
        threshold = source.number("threshold")
        if threshold >= 0:
            made.score_F, made.threshold = score_F, threshold
    if "activation_mean" in source.tensors:
        mean_LD = source.take("activation_mean", 2, width)
        if not bool(mean_LD.isnan().any()):
            scale_L = source.take("activation_global_scale", 2).tolist()
            if min(scale_L) <= 0:
                raise DamagedError(f"{source.path}: 'activation_global_scale' must be above 0, found {scale_L}")
            for at, side in enumerate(SIDES):
                made.scale(side, scale_L[at], scale_L[at] + _EPSILON, mean_LD[at])
    return made


def _score(source: Source, w_LFD: torch.Tensor) -> torch.Tensor | None:
    """(F,) what activations are multiplied by before they are compared with the threshold; None: nothing."""
    number = int(source.number("code_normalization_id")) if "code_normalization_id" in source.tensors else 1
    if "code_normalization_id" not in source.tensors:
        say(
            "the file is an old one that does not name its code normalisation: CROSSCODER is taken, as the library does"
        )
    norm_LF = torch.linalg.vector_norm(w_LFD, dim=2, dtype=torch.float64)
    match _NORMS.get(number):
        case "CROSSCODER":
            return norm_LF.sum(dim=0)
        case "SAE":
            return norm_LF.norm(dim=0)
        case "MIXED":
            alpha, beta = (
                source.setting(f"code_normalization_alpha_{name}", (int, float), default)
                for name, default in (("sae", 1.0), ("cc", 0.1))
            )
            return alpha * norm_LF.norm(dim=0) + beta * norm_LF.sum(dim=0)
        case "NONE":
            return None
        case "DECOUPLED":
            raise InputError(
                f"{source.name} has the code normalisation DECOUPLED: a feature is active in one model and not in the "
                "other, which a crosscoder here cannot be"
            )
    raise DamagedError(f"{source.path}: 'code_normalization_id' is {number}, which is none of 1 to 5")


def write(crosscoder: Crosscoder, folder: Path) -> dict[str, Any]:
    """model.safetensors and config.json of a `BatchTopKCrossCoder`, as its `from_pretrained(..., from_hub=True)` reads
    them. Answers with what it says about them. Raises InputError: the selection has no counterpart."""
    config = crosscoder.config
    if config.selection not in _OF_SELECTION or config.threshold_designated not in (0, config.threshold):
        raise InputError(
            f"dictionary_learning has no selection like '{config.selection}'"
            f"{' with a threshold of its own for designated features' if config.n_designated else ''}: "
            "export to saelens, which has one threshold for each feature"
        )
    # Their units become ours, so that the norms of the decoder, by which they may select, are too.
    dense, slices = Dictionary.of(crosscoder), crosscoder.slices
    order_F = torch.cat([torch.arange(slices[name].start, slices[name].stop) for name in ("A", "B", "shared")])
    scale_L = torch.tensor([config.scale_a, config.scale_b], dtype=torch.float64)
    e_LFD = pad(dense.encoder)[:, order_F] / (scale_L - _EPSILON).float()[:, None, None]
    w_LFD = pad(dense.decoder)[:, order_F] * scale_L.float()[:, None, None]
    width = w_LFD.shape[2]
    norm_id = _OF_SELECTION[config.selection]
    tensors = {
        "encoder.weight": e_LFD.mT,
        "encoder.bias": dense.b_enc[order_F].float(),
        "decoder.weight": w_LFD,
        "decoder.bias": (pad(dense.b_dec) * scale_L[:, None]).float(),
        "code_normalization_id": torch.tensor(norm_id),
        "k": torch.tensor(config.k, dtype=torch.int32),
        "threshold": torch.tensor(config.threshold),
        "target_rms": torch.tensor(1.0),
        "activation_mean": torch.zeros(2, width),
        "activation_std": (1 / (scale_L[:, None] * width**0.5)).expand(2, width).float(),
        "activation_global_scale": (scale_L - _EPSILON).float(),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    sizes = {"activation_dim": width, "dict_size": crosscoder.n_features, "num_layers": 2, "k": config.k}
    write_json(folder / "config.json", {**sizes, "code_normalization": _NORMS[norm_id]})
    n_a, n_exclusive = config.n_a_only, config.n_a_only + config.n_b_only
    return {
        "load": "BatchTopKCrossCoder.from_pretrained(FOLDER, from_hub=True)",
        "order": {"A": [0, n_a], "B": [n_a, n_exclusive], "shared": [n_exclusive, crosscoder.n_features]},
        "padded": {side: width - getattr(config, f"width_{side}") for side in SIDES},
    }
