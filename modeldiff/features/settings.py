"""Settings of the features stage."""

from __future__ import annotations

from modeldiff.errors import InputError
from modeldiff.settings import Settings, setting, settings


@settings
class FeaturesSettings(Settings):
    """What is measured about each feature, on which pairs."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations to measure on. Default: those the crosscoder was trained on."""

    pairs: int | None = setting(default=None)
    """Measure on about this many pairs, in blocks spread evenly over the activations. Default: all of them."""

    examples: int = setting(default=20)
    """Top examples kept per feature; at most one per document as long as there are enough documents."""

    context: int = setting(default=16)
    """Aligned places shown on each side of an example, with the feature's activation at each."""

    sample_pairs: int = setting(default=200_000)
    """Pairs from which twins and predictability are computed, in blocks spread evenly."""

    predictability: bool = setting(default=True)
    """Measure how well each feature is predicted linearly from either model's activations (held-out R²)."""

    outlier_factor: float | None = setting(default=None)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm; 0 keeps all. Default: as in
    training, for what it never saw means nothing."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        if self.pairs is not None and self.pairs < 1:
            raise InputError(f"--pairs must be at least 1, found {self.pairs}")
        if self.examples < 1:
            raise InputError(f"--examples must be at least 1, found {self.examples}")
        if self.context < 0:
            raise InputError(f"--context must be 0 or more, found {self.context}")
        if self.sample_pairs < 100:
            raise InputError(f"--sample-pairs must be at least 100, found {self.sample_pairs}")
        if self.outlier_factor is not None and self.outlier_factor < 0:
            raise InputError(f"--outlier-factor must be 0 (keep all) or more, found {self.outlier_factor}")
