"""Settings of the evaluation: what the models' own losses say about a crosscoder."""

from __future__ import annotations

from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import Settings, setting, settings


@settings
class EvaluateSettings(Settings):
    """Which crosscoder is put in the place of which activations, and on how many pairs."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations, with their texts, to measure on. Default: those the crosscoder was trained on."""

    pairs: int = setting(default=20_000)
    """Measure on about this many pairs, in whole windows of text spread evenly over the activations."""

    outlier_factor: float | None = setting(default=None)
    """Leave the model's own activation where a pair's norm, on either side, exceeds this many times the median norm; 0
    replaces all. Default: as in training, for what it never saw means nothing."""

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
        if self.outlier_factor is not None and self.outlier_factor < 0:
            raise InputError(f"--outlier-factor must be 0 (replace all) or more, found {self.outlier_factor}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise InputError(f"--batch-tokens must be at least 1, found {self.batch_tokens}")
