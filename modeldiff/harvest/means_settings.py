"""Settings of `modeldiff harvest means`. Imports nothing heavy."""

from __future__ import annotations

from modeldiff.settings import Settings, setting, settings


@settings
class MeansSettings(Settings):
    """Which activations are averaged along their texts, and over how many pairs."""

    # A reference is only a way to say which artifact: its digest decides whether the result is the same.
    activations: str | None = setting(default=None, result=False)
    """The activations: a version, `activations:2`, or a name. Default: the latest."""

    over: int = setting(default=24, least=2)
    """Each activation becomes the mean of so many: its own and those of the pairs before it in the same text."""
