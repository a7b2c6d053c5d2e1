"""Settings of the evaluation: what the models' own losses say about a crosscoder."""

from __future__ import annotations

from modeldiff.features.measures.measure import OnModels
from modeldiff.settings import settings


@settings
class EvaluateSettings(OnModels):
    """Which crosscoder is put in the place of which activations, and on how many pairs."""
