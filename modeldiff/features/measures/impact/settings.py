"""Settings of the impact measurement."""

from __future__ import annotations

from modeldiff.features.measures.measure import OnModels
from modeldiff.settings import setting, settings


@settings
class ImpactSettings(OnModels):
    """Whose features are removed from the models' activations, and on how many pairs."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions into the other model. Default: the latest of the activations measured on."""

    pairs: int = setting(default=60_000, least=1)

    samples: int = setting(default=3, least=1)
    """Next tokens drawn at every position. More of them make the impacts less noisy; a backward pass each."""

    seed: int = setting(default=0, least=0)
    """Seed of the tokens drawn, the random directions, and the features that are removed as a check."""
