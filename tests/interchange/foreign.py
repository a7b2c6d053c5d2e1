"""Files of other libraries, written by hand, and what the libraries make of activations, as dense formulas.

Legend: N rows, D width, F features, L the two models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Said = tuple[torch.Tensor, torch.Tensor]
"""A library's code (N, F) and reconstructions (N, L, D)."""
WIDTH, FEATURES, ROWS = 6, 12, 200
A_ONLY, B_ONLY = [3, 7], [0]
"""Numbers of the features that a model has alone, in files whose other features are shared."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def activations(width_b: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two models: other means and norms."""
    return draw(ROWS, WIDTH) * 3 + 1, draw(ROWS, width_b, seed=1) * 0.5 - 0.3


def forks(**more: Any) -> Tensors:
    """A crosscoder of dictionary_learning with dedicated features."""
    made = {
        "encoder.weight": draw(2, WIDTH, FEATURES) * 0.4, "encoder.bias": draw(FEATURES) * 0.1,
        "decoder.weight": draw(2, FEATURES, WIDTH, seed=2), "decoder.bias": draw(2, WIDTH),
        "code_normalization_id": torch.tensor(1),
    }  # fmt: skip
    for model, features in ((1, A_ONLY), (0, B_ONLY)):
        made["encoder.weight"][model][:, features] = 0
        made["decoder.weight"][model][features] = 0
    return {**made, **{name: torch.as_tensor(value) for name, value in more.items()}}


def forks_said(tensors: Tensors, x_NLD: torch.Tensor, alphas: tuple[float, float] = (1.0, 0.1)) -> Said:
    x_NLD = x_NLD.double()
    mean, scale = torch.zeros(2, 1), torch.ones(2)
    if "activation_mean" in tensors and not bool(tensors["activation_mean"].isnan().any()):
        mean, scale = tensors["activation_mean"].double(), tensors["activation_global_scale"].double()
    inside = (x_NLD - mean) * scale[:, None]
    pre = torch.einsum("nld,ldf->nf", inside, tensors["encoder.weight"].double()) + tensors["encoder.bias"]
    norm_LF = tensors["decoder.weight"].double().norm(dim=2)
    weight_F = {
        1: norm_LF.sum(dim=0),
        2: norm_LF.square().sum(dim=0).sqrt(),
        3: alphas[0] * norm_LF.square().sum(dim=0).sqrt() + alphas[1] * norm_LF.sum(dim=0),
        4: torch.ones(FEATURES),
    }[int(tensors["code_normalization_id"])]
    code = pre.relu()
    if "threshold" in tensors:
        code = code * (code * weight_F > tensors["threshold"])
    out = torch.einsum("nf,lfd->nld", code, tensors["decoder.weight"].double()) + tensors["decoder.bias"]
    return code, out / (scale[:, None] + 1e-8) + mean


def topk() -> Tensors:
    """Of model_diffing_crosscoders: features 3 and 7 write to A alone, but read both."""
    mask = torch.ones(FEATURES, 2)
    mask[A_ONLY, 1] = 0
    return {
        "W_enc": draw(2, WIDTH, FEATURES), "b_enc": draw(FEATURES), "W_dec": draw(FEATURES, 2, WIDTH),
        "b_dec": draw(2, WIDTH), "enc_mask": mask.T.contiguous(), "dec_mask": mask,
    }  # fmt: skip


def topk_said(tensors: Tensors, x_NLD: torch.Tensor, k: int) -> Said:
    pre = (torch.einsum("nld,ldf->nf", x_NLD, tensors["W_enc"]) + tensors["b_enc"]).relu()
    code = torch.zeros_like(pre).scatter_(1, pre.topk(k).indices, pre.topk(k).values)
    return code, torch.einsum("nf,fld->nld", code, tensors["W_dec"] * tensors["dec_mask"][:, :, None]) + tensors[
        "b_dec"
    ]


def crosscode(jump: bool) -> Tensors:
    made = {
        "_W_enc_XiDiL": draw(2, 1, WIDTH, FEATURES), "_W_dec_LXoDo": draw(FEATURES, 2, 1, WIDTH),
        "b_enc_L": draw(FEATURES), "_b_dec_XoDo": draw(2, 1, WIDTH),
    }  # fmt: skip
    return {**made, **({"_activation_fn.log_threshold_L": draw(FEATURES, seed=5)} if jump else {})}


def crosscode_said(tensors: Tensors, x_NLD: torch.Tensor) -> Said:
    pre = torch.einsum("nld,ldf->nf", x_NLD, tensors["_W_enc_XiDiL"][:, 0]) + tensors["b_enc_L"]
    above = tensors.get("_activation_fn.log_threshold_L", torch.tensor(-torch.inf)).exp()
    code = torch.where(pre > above, pre, 0.0)
    return code, torch.einsum("nf,fld->nld", code, tensors["_W_dec_LXoDo"][:, :, 0]) + tensors["_b_dec_XoDo"][:, 0]


def sae(width: int, *, seed: int = 0, jump: bool = False) -> Tensors:
    made = {
        "W_enc": draw(width, FEATURES, seed=seed), "b_enc": draw(FEATURES, seed=seed),
        "W_dec": draw(FEATURES, width, seed=seed), "b_dec": draw(width, seed=seed),
    }  # fmt: skip
    return {**made, **({"threshold": draw(FEATURES, seed=seed).abs() + 0.2} if jump else {})}


def sae_said(tensors: Tensors, x_ND: torch.Tensor, *, minus: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """minus: the decoder's bias is taken from the activations first."""
    pre = (x_ND - tensors["b_dec"] * minus) @ tensors["W_enc"] + tensors["b_enc"]
    code = torch.where(pre > tensors.get("threshold", torch.zeros(())), pre, 0.0)
    return code, code @ tensors["W_dec"] + tensors["b_dec"]


def written(folder: Path, tensors: dict[str, Any], config: Any = None, weights: str = "model.safetensors") -> Path:
    """The folder, with the weights and, unless None, a config beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    save: Callable[[Any, Path], None] = save_file if weights.endswith("safetensors") else torch.save
    save(tensors, folder / weights)
    if config is not None:
        name = {"sae_weights.safetensors": "cfg.json", "model.pt": "model_cfg.yaml"}.get(weights, "config.json")
        (folder / name).write_text(json.dumps(config))  # which is YAML, too
    return folder
