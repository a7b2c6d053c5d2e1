"""Dictionaries of SAELens, which has those of one model: two of them, or one on two models' activations side by side.

Files: sae_weights.safetensors with W_enc (D, F), b_enc (F,), W_dec (F, D), b_dec (D,) and, for JumpReLU, threshold
(F,); cfg.json. Side by side, D is Da + Db: this is a crosscoder in SAELens' form, and what `write` makes of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import DamagedError, InputError
from modeldiff.interchange.dictionary import Dictionary, Sided
from modeldiff.interchange.files import Source
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace.files import write_json

# Others depend on what else a token has, or on what the file does not hold.
_READ = {
    "architecture": ("standard", "jumprelu"), "normalize_activations": ("none",), "reshape_activations": ("none",),
}  # fmt: skip
_NEVER = torch.finfo(torch.float32).max


def fits(source: Source) -> bool:
    return "W_enc" in source.tensors and source.tensors["W_enc"].dim() == 2


def read_joint(source: Source, widths: tuple[int, int]) -> Dictionary:
    """One dictionary on activations of A, then those of B, in one vector."""
    one = _One(source)
    if one.w_FD.shape[1] != sum(widths):
        raise InputError(
            f"{source.name} reads {one.w_FD.shape[1]} numbers of one model: give one of each model, A's first, "
            f"or one of both side by side ({widths[0]} + {widths[1]} numbers)"
        )
    parts = [dict(zip(SIDES, tensor.split(widths, dim=-1), strict=True)) for tensor in (one.e_FD, one.w_FD, one.b_D)]
    made = Dictionary(encoder=parts[0], decoder=parts[1], b_dec=parts[2], b_enc=one.b_F)
    return _selected(made, one.threshold_F)


def read_pair(sources: Mapping[str, Source]) -> Dictionary:
    """A's dictionary, whose features become exclusive ones of A, and B's. Nothing is shared between them."""
    ones = {side: _One(source) for side, source in sources.items()}
    encoder: Sided = {}
    decoder: Sided = {}
    for side, one in ones.items():
        nothing = torch.zeros(len(ones[OTHER[side]].b_F), one.w_FD.shape[1])
        for rows, matrices in ((one.e_FD, encoder), (one.w_FD, decoder)):
            matrices[side] = torch.cat([rows, nothing] if side == "a" else [nothing, rows])
    made = Dictionary(
        encoder=encoder,
        decoder=decoder,
        b_enc=torch.cat([one.b_F for one in ones.values()]),
        b_dec={side: one.b_D for side, one in ones.items()},
        layers={side: one.layer for side, one in ones.items()},
        notes=["each model has its own dictionary: that a feature is exclusive says nothing, ask for its twins"],
    )
    return _selected(made, torch.cat([one.threshold_F for one in ones.values()]))


class _One:
    """A single dictionary, on raw activations. Legend: F features, D width."""

    def __init__(self, source: Source) -> None:
        source.only("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        w_DF = source.take("W_enc", None, None)
        width, n_features = w_DF.shape
        self.e_FD = w_DF.T.contiguous()
        self.w_FD = source.take("W_dec", n_features, width)
        self.b_D = source.take("b_dec", width).double()
        self.b_F = source.take("b_enc", n_features).double()
        for name, readable in _READ.items():
            if (value := source.setting(name, str, readable[0])) not in readable:
                raise InputError(f"{source.name}: '{name}' is '{value}'; {' and '.join(readable)} can be read")
        if source.setting("apply_b_dec_to_input", bool, True):
            self.b_F = self.b_F - self.e_FD.double() @ self.b_D
        self.threshold_F = torch.zeros(n_features, dtype=torch.float64)
        if source.setting("architecture", str) == "jumprelu":
            self.threshold_F = source.take("threshold", n_features).double()
        if bool((self.threshold_F < 0).any()):
            raise DamagedError(f"{source.path}: 'threshold' has numbers below 0")
        metadata = source.setting("metadata", dict, {})
        block = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", str(metadata.get("hook_name")))
        self.layer = int(block[1]) if block else None


def _selected(made: Dictionary, threshold_F: torch.Tensor) -> Dictionary:
    """With a threshold for each feature: one in units of its own."""
    if bool((threshold_F > 0).all()):
        made.score_F, made.threshold = 1 / threshold_F, 1.0
    elif bool((threshold_F > 0).any()):
        raise InputError("some features have a threshold and others have none, which a crosscoder here cannot hold")
    return made


def write(crosscoder: Crosscoder, folder: Path) -> dict[str, Any]:
    """A JumpReLU dictionary (a standard one without thresholds) on both models' activations side by side, A's first."""
    dense, config = Dictionary.of(crosscoder), crosscoder.config
    threshold_F = crosscoder.thresholds().double()
    if dense.score_F is not None:
        threshold_F = threshold_F / dense.score_F
    # What is never active has a score of 0.
    threshold_F = threshold_F.nan_to_num(nan=0.0, posinf=_NEVER).clamp(max=_NEVER).float()
    jumps = bool((threshold_F > 0).any())
    tensors = {
        "W_enc": torch.cat(list(dense.encoder.values()), dim=1).T,
        "W_dec": torch.cat(list(dense.decoder.values()), dim=1),
        "b_enc": dense.b_enc.float(),
        "b_dec": torch.cat(list(dense.b_dec.values())).float(),
        **({"threshold": threshold_F} if jumps else {}),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    widths = (config.width_a, config.width_b)
    write_json(
        folder / "cfg.json",
        {
            "architecture": "jumprelu" if jumps else "standard", "d_in": sum(widths), "d_sae": crosscoder.n_features,
            "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"input": "activations of A, then those of B", "widths": list(widths)},
        },
    )  # fmt: skip
    return {
        "load": "SAE.load_from_disk(FOLDER), encode(torch.cat([x_a, x_b], dim=-1))",
        "order": {name: [part.start, part.stop] for name, part in crosscoder.slices.items()},
        "widths": list(widths),
    }
