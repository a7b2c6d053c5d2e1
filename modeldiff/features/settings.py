"""Settings of the features stage."""

from __future__ import annotations

from modeldiff.settings import OnDevice, setting, settings


@settings
class FeaturesSettings(OnDevice):
    """What is measured about each feature, on which pairs."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations to measure on. Default: those the crosscoder was trained on."""

    pairs: int | None = setting(default=None, least=1)
    """Measure on about this many pairs, in blocks spread evenly over the activations. Default: all of them."""

    examples: int = setting(default=20, least=1)
    """Top examples kept per feature; at most one per document as long as there are enough documents."""

    context: int = setting(default=16, least=0)
    """Aligned places shown on each side of an example, with the feature's activation at each."""

    sample_pairs: int = setting(default=200_000, least=100)
    """Pairs from which twins and predictability are computed, in blocks spread evenly."""

    predictability: bool = setting(default=True)
    """Measure how well each feature is predicted linearly from either model's activations (held-out R²)."""

    outlier_factor: float | None = setting(default=None, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm; 0 keeps all. Default: as in
    training, for what it never saw means nothing."""
