"""The dictionary: partition, forward pass, selection, losses, training, save and load.

Names are looked up on first use: `modeldiff.crosscoder.settings` must be importable without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modeldiff.crosscoder.config import CrosscoderConfig
    from modeldiff.crosscoder.model import Crosscoder, load

__all__ = ["Crosscoder", "CrosscoderConfig", "load"]

_HOMES = {"Crosscoder": "model", "CrosscoderConfig": "config", "load": "model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
