"""What each feature of a crosscoder does: usage, examples in context, twins, predictability, and a table to list them.

Names are looked up on first use: `modeldiff.features.settings` must be importable without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modeldiff.features.settings import FeaturesSettings
    from modeldiff.features.table import FeatureRow, FeatureTable

__all__ = ["FeatureRow", "FeatureTable", "FeaturesSettings"]

_HOMES = {"FeaturesSettings": "settings", "FeatureRow": "table", "FeatureTable": "table"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
