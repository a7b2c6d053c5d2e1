"""Settings of the evaluation: what the models' own losses say about a crosscoder."""

from __future__ import annotations

from modeldiff.settings import HarvestedModels, setting, settings

KIND = "evaluate"


@settings
class EvaluateSettings(HarvestedModels):
    """Which crosscoder is put in the place of which activations, and on how many pairs."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations, with their texts, to measure on. Default: those the crosscoder was trained on."""

    pairs: int = setting(default=20_000, least=1)
    """Measure on about this many pairs, in whole windows of text spread evenly over the activations."""

    outlier_factor: float | None = setting(default=None, least=0)
    """Leave the model's own activation where a pair's norm, on either side, exceeds this many times the median norm; 0
    replaces all. Default: as in training, for what it never saw means nothing."""

    batch_tokens: int | None = setting(default=None, result=False, least=1)
    """Padded tokens per batch. Default: by the device and the size of the vocabulary."""
