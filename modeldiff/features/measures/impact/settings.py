"""Settings of the impact measurement. Imports nothing heavy."""

from __future__ import annotations

from modeldiff.settings import HarvestedModels, setting, settings

KIND = "impact"


@settings
class ImpactSettings(HarvestedModels):
    """Whose features are removed from the models' activations, and on how many pairs."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations, with their texts, to measure on. Default: those the crosscoder was trained on."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions into the other model. Default: the latest of the activations measured on."""

    pairs: int = setting(default=60_000, least=1)
    """Measure on about this many pairs, in whole windows of text spread evenly over the activations."""

    samples: int = setting(default=3, least=1)
    """Next tokens drawn at every position. More of them make the impacts less noisy; a backward pass each."""

    seed: int = setting(default=0, least=0)
    """Of the tokens drawn, the random directions, and which documents the surface is fitted on."""

    outlier_factor: float | None = setting(default=None, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm; 0 keeps all. Default: as in
    training, for what it never saw means nothing."""

    batch_tokens: int | None = setting(default=None, result=False, least=1)
    """Padded tokens per batch. Default: by the device and the size of the vocabulary."""
