"""Settings of the impact measurement. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import Settings, setting, settings


@settings
class ImpactSettings(Settings):
    """Whose features are removed from the models' activations, and on how many pairs."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations, with their texts, to measure on. Default: those the crosscoder was trained on."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions into the other model. Default: the latest of the activations measured on."""

    pairs: int = setting(default=60_000)
    """Measure on about this many pairs, in whole windows of text spread evenly over the activations."""

    samples: int = setting(default=3)
    """Next tokens drawn at every position. More of them make the impacts less noisy; a backward pass each."""

    seed: int = setting(default=0)
    """Of the tokens drawn, the random directions, and which documents the surface is fitted on."""

    outlier_factor: float | None = setting(default=None)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm; 0 keeps all. Default: as in
    training, for what it never saw means nothing."""

    # The weights are an input with a digest: where they lie makes no difference.
    model_path_a: str | None = setting(default=None, result=False)
    """Where model A is now, if not where it was at harvest time (a folder, a GGUF file or a hub name)."""

    model_path_b: str | None = setting(default=None, result=False)
    """The same for model B."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto", result=False)
    """Number format of the models; auto: bfloat16 on CUDA, float32 elsewhere. Best the one of the harvest."""

    batch_tokens: int | None = setting(default=None, result=False)
    """Padded tokens per batch. Default: by the device and the size of the vocabulary."""

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise InputError(f"--pairs must be at least 1, found {self.pairs}")
        if self.samples < 1:
            raise InputError(f"--samples must be at least 1, found {self.samples}")
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, found {self.seed}")
        if self.outlier_factor is not None and self.outlier_factor < 0:
            raise InputError(f"--outlier-factor must be 0 (keep all) or more, found {self.outlier_factor}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise InputError(f"--batch-tokens must be at least 1, found {self.batch_tokens}")
