"""Settings of `modeldiff diff`. Imports nothing heavy."""

from __future__ import annotations

from modeldiff.contrast.settings import ListSettings
from modeldiff.settings import OfRecords, setting, settings


@settings
class DiffSettings(ListSettings, OfRecords):
    """Two models and texts; what else the stages need has sensible defaults (their own commands have every option)."""

    model_a: str = setting()
    """Model A: a name on the hub, a local folder or a .gguf file; of a model or a PEFT adapter."""
    model_b: str = setting()
    """Model B, likewise."""
    revision_a: str | None = setting(default=None)
    """Branch, tag or commit of model A on the hub."""
    revision_b: str | None = setting(default=None)
    """Branch, tag or commit of model B on the hub."""
    texts: tuple[str, ...] = setting()
    """Texts that both models read, as for `modeldiff harvest`: [LABEL=]FILE.txt|.jsonl|.parquet or hf:NAME."""
    pairs: int = setting(default=1_000_000, least=1)
    """Pairs of activations to harvest; fewer if the texts run out."""
    features: int | None = setting(default=None, least=1)
    """Size of the dictionary; 8 times the mean of the two widths if left out."""
    k: int | None = setting(default=None, least=1)
    """Active features per pair, on average; 1/20 of the mean width but at least 16 if left out."""
    steps: int | None = setting(default=None, least=1)
    """Steps of training; two passes over the pairs but at least 2000 if left out."""
    places: int = setting(default=6000, least=40)
    """Both models continue the texts from about this many places."""
    steer: bool = setting(default=True)
    """Push the features of the list, at a few places where nothing of it holds; the page shows what that does."""
    seed: int = setting(default=0, least=0)
    """Of the training, the places and the sampling."""
