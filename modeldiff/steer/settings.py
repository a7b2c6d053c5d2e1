"""Settings of the steer stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import Settings, setting, settings


@settings
class SteerSettings(Settings):
    """Which feature is pushed in which model, how hard, and what the model is asked to continue."""

    model: Literal["A", "B"] = setting()
    """The model to steer."""

    feature: int = setting()
    """Number of the feature, as `modeldiff features` lists it."""

    strength: tuple[float, ...] = setting(default=(1.0,), variadic=True)
    """How hard: 1 adds the feature's direction at its maximum activation, negative values push against it."""

    prompt: tuple[str, ...] = setting(default=(), variadic=True)
    """Texts to continue."""

    # The prompts themselves are an input with a digest: where the file lies makes no difference.
    prompts: Path | None = setting(default=None, result=False)
    """A file with one prompt per line, in place of --prompt."""

    features: str | None = setting(default=None, result=False)
    """The features artifact that the number refers to. Default: the latest (of --crosscoder, if given)."""

    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder that the number refers to. Default: the one the features were made from."""

    max_new_tokens: int = setting(default=80)
    """Length of each continuation in tokens."""

    temperature: float = setting(default=0.0)
    """0: always the likeliest token; otherwise draw."""

    top_p: float = setting(default=1.0)
    """When drawing: only from the likeliest tokens that hold this much of the probability."""

    seed: int = setting(default=0)
    """Of the drawing; the same for every strength."""

    chat: Literal["auto", "yes", "no"] = setting(default="auto")
    """Put each prompt to the model as a user's message, in its chat format; auto: when its tokenizer has one."""

    model_path: str | None = setting(default=None, result=False)
    """Where the model is now, if not where it was at harvest time (a folder, a GGUF file or a hub name)."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto", result=False)
    """Number format of the model; auto: bfloat16 on CUDA, float32 elsewhere."""

    def __post_init__(self) -> None:
        if self.model not in ("A", "B"):
            raise InputError(f"--model expects A or B, found '{self.model}'")
        if not self.strength or not all(math.isfinite(value) for value in self.strength):
            raise InputError("--strength expects one or more finite numbers, e.g. `--strength -2 1 4`")
        if self.prompt and self.prompts:
            raise InputError("give the prompts with --prompt or with --prompts, not both")
        if not self.prompt and not self.prompts:
            raise InputError("there is nothing to continue: give --prompt TEXT or --prompts FILE")
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens must be at least 1, found {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature must be 0 or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p must be above 0 and at most 1, found {self.top_p}")
