"""Settings of the two stages of this room: continuations and contrast. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from modeldiff.errors import InputError
from modeldiff.settings import OfRecords, OnDevice, RemoteCode, setting, settings

ContextKind = Literal["everywhere", "source", "word", "feature"]
CONTEXT_KINDS: tuple[ContextKind, ...] = get_args(ContextKind)


@settings
class ContinuationsSettings(RemoteCode, OnDevice, OfRecords):
    """Which models continue which texts, from how many places, and how far."""

    model_a: str | None = setting(default=None)
    """Model A: a name on the hub, a local folder or a .gguf file; of a model or a PEFT adapter. Default: of the latest
    activations."""
    model_b: str | None = setting(default=None)
    """Model B, likewise."""
    revision_a: str | None = setting(default=None)
    """Branch, tag or commit of model A on the hub."""
    revision_b: str | None = setting(default=None)
    """Branch, tag or commit of model B on the hub."""
    # What counts is their content, label and weight (see continuations.py); likewise of the prompts their content.
    texts: tuple[str, ...] = setting(default=(), result=False)
    """Texts to continue, as for `modeldiff harvest`: [LABEL=]FILE.txt|.jsonl|.parquet or hf:NAME, each with @WEIGHT
    if wanted. Of chats, the ends of the user's messages are continued. Default: of the latest activations."""
    prompts: Path | None = setting(default=None, result=False)
    """A file of prompts to answer, one a line (.txt) or one a record (.jsonl, .parquet); models with a chat template
    get them as a user's message. Alone or together with --texts."""
    places: int = setting(default=6000, least=40)
    """Continue from about this many places."""
    uniform: float = setting(default=0.5, least=0, most=1)
    """Share of the places drawn evenly; the others are drawn where the two models' next words differ."""
    tokens: int = setting(default=24, least=1)
    """Tokens of a continuation, at most."""
    draws: int = setting(default=1, least=1)
    """Continuations of each place by each model."""
    context: int = setting(default=512, least=8)
    """A model reads at most this many tokens before a place."""
    seed: int = setting(default=0, least=0)
    """Of the documents and places drawn, and of the sampling."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto")
    """Number format of the models; auto: bfloat16 on CUDA, float32 elsewhere."""

    def check(self) -> None:
        if (self.model_a is None) != (self.model_b is None):
            raise InputError("give both --model-a and --model-b, or neither (then those of the latest activations)")


@settings
class ListSettings(RemoteCode, OnDevice):
    """Which contexts are compared, and what is listed."""

    contexts: tuple[ContextKind, ...] = setting(default=CONTEXT_KINDS)
    """Kinds of context: everywhere, source, word, feature."""
    rate: float = setting(default=0.05, above=0, below=1)
    """False discovery rate of the list."""
    smallest: float = setting(default=0.05, least=0, below=1)
    """Smallest effect that is listed: what is shown to be larger, as a difference of rates from 0 to 1."""
    top: int = setting(default=10, least=1)
    """Entries of the list, at most."""
    cause: bool = setting(default=True)
    """Sample again with the features of the list removed."""


@settings
class ContrastSettings(ListSettings):
    """Which contexts are compared on which continuations, and what is listed."""

    continuations: str | None = setting(default=None, result=False)
    """The continuations: a version, `continuations:2`, or a name. Default: made, or found, for the models and texts."""
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder whose features are contexts: a version or a name. Default: the latest of these models; `none`:
    words, sources and everywhere alone."""
    least: int = setting(default=12, least=2)
    """A context holds on at least this many places of either half."""
    most: float = setting(default=0.5, above=0, most=1)
    """A context holds on at most this share of the places."""
    tokens_differ: bool = setting(default=False)
    """Keep features whose top examples are mostly places where the two models read different tokens."""
    cause_places: int = setting(default=32, least=1)
    """Held-out places for the cause of each entry."""
    seed: int = setting(default=0, least=0)
    """Of the permutations and of the sampling of the cause."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto", result=False)
    """Number format of the models; auto: bfloat16 on CUDA, float32 elsewhere."""

    def check(self) -> None:
        if not self.contexts:
            raise InputError(f"--contexts expects some of {', '.join(CONTEXT_KINDS)}; found none")
