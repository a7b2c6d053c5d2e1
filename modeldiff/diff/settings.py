"""Settings of `modeldiff diff`. Imports nothing heavy."""

from __future__ import annotations

from modeldiff.settings import Settings, setting, settings


@settings
class DiffSettings(Settings):
    """Two models and texts; what else the stages need has sensible defaults (their own commands have every option)."""

    model_a: str = setting()
    """Model A: a name on the hub, a local folder or a .gguf file."""
    model_b: str = setting()
    """Model B, likewise."""
    texts: tuple[str, ...] = setting(variadic=True)
    """Texts that both models read, as for `modeldiff harvest`: [LABEL=]FILE.txt|.jsonl|.parquet or hf:NAME."""
    text_field: str = setting(default="text")
    """The field of a .jsonl or .parquet record that holds the text."""
    pairs: int = setting(default=1_000_000)
    """Pairs of activations to harvest; fewer if the texts run out."""
    features: int | None = setting(default=None)
    """Size of the dictionary; 8 times the mean of the two widths if left out."""
    k: int | None = setting(default=None)
    """Active features per pair, on average; 1/20 of the mean width but at least 16 if left out."""
    steps: int | None = setting(default=None)
    """Steps of training; two passes over the pairs but at least 2000 if left out."""
    places: int = setting(default=6000)
    """Both models continue the texts from about this many places."""
    contexts: tuple[str, ...] = setting(default=("everywhere", "source", "word", "feature"), variadic=True)
    """Kinds of context that are compared: everywhere, source, word, feature."""
    rate: float = setting(default=0.05)
    """False discovery rate of the list."""
    smallest: float = setting(default=0.05)
    """Smallest effect that is listed, as a difference of rates from 0 to 1."""
    top: int = setting(default=10)
    """Entries of the list, at most."""
    cause: bool = setting(default=True)
    """Sample again with the features of the list removed and added."""
    seed: int = setting(default=0)
    """Of the training, the places and the sampling."""
    trust_remote_code: bool = setting(default=False)
    """Run Python code that comes with a model."""
    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps."""
