"""Settings of the exclusivity score. Imports nothing heavy."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

from modeldiff.errors import InputError
from modeldiff.judge.settings import JudgeSettings
from modeldiff.settings import setting, settings

Partition = Literal["A", "shared", "B"]
Aggregate = Literal["mean", "median", "min", "max"]
# Paper B.5.
PROMPTS = ("What's on your mind?", "What do you want to talk about?", "Tell me something")
STRENGTHS = tuple(float(strength) for strength in range(11))


@settings
class ScoreSettings(JudgeSettings):
    """Which features are pushed in both models, how, and who says whether the same came of it."""

    JUDGES: ClassVar[tuple[str, ...]] = ("local", "openai")

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    features: str | None = setting(default=None, result=False)
    """The features artifact: a version, `features:2`, or a name. Default: the latest."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions. Default: the latest of the activations that the features were measured on."""

    sample: int = setting(default=20)
    """Score so many living features of each partition, drawn at random (the paper: 500)."""

    features_from: tuple[Partition, ...] = setting(default=("A", "shared", "B"), variadic=True)
    """The partitions to draw from. Shared features are the control that should score low; they are scored both ways."""

    feature: tuple[int, ...] = setting(default=(), variadic=True)
    """Score these features, in place of a sample."""

    random_directions: int = setting(default=10)
    """Also push so many random directions in each model, as long as its features' usually are: what the score says
    about nothing in particular."""

    strength: tuple[float, ...] = setting(default=STRENGTHS, variadic=True)
    """How hard: 1 adds the direction at the feature's maximum activation. 0, the model as it is, is always there."""

    stitch_bias: bool = setting(default=False)
    """Move directions with the stitch's constant added, as the paper writes it (eq. 18): the same constant in every
    direction."""

    judge: Literal["local", "openai"] | None = setting(default=None)  # type: ignore[assignment]
    """Who rates what the models write, needed: a chat model on this machine (local), or any OpenAI-compatible endpoint
    (openai)."""

    prompt: tuple[str, ...] = setting(default=PROMPTS, variadic=True)
    """What both models are asked."""

    max_new_tokens: int = setting(default=200)
    """Length of each text in tokens."""

    temperature: float = setting(default=0.7)
    """0: always the likeliest token; otherwise draw."""

    top_p: float = setting(default=0.9)
    """When drawing: only from the likeliest tokens that hold this much of the probability."""

    chat: Literal["auto", "yes", "no"] = setting(default="auto")
    """Put each prompt to a model as a user's message, in its chat format; auto: when its tokenizer has one."""

    min_steerability: float = setting(default=3.0)
    """Score a feature only if what it does to its own model is rated at least this."""

    aggregate: Aggregate = setting(default="mean")
    """How the ratings of the prompts become one (the paper does not say)."""

    seed: int = setting(default=0)
    """Of the sample, the random directions and the texts."""

    # The weights are an input with a digest: where they lie makes no difference.
    model_path_a: str | None = setting(default=None, result=False)
    """Where model A is now, if not where it was at harvest time (a folder, a GGUF file or a hub name)."""

    model_path_b: str | None = setting(default=None, result=False)
    """The same for model B."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto", result=False)
    """Number format of the models; auto: bfloat16 on CUDA, float32 elsewhere."""

    def __post_init__(self) -> None:
        if self.judge is None:
            raise InputError(
                "the score needs a judge that rates what the models write: give --judge local --judge-model MODEL "
                "(a chat model on this machine) or --judge openai --judge-model NAME (an OpenAI-compatible endpoint)"
            )
        super().__post_init__()
        if not self.features_from or not set(self.features_from) <= set(get_args(Partition)):
            raise InputError(f"--features-from expects A, shared or B, found '{', '.join(self.features_from)}'")
        if self.sample < 1:
            raise InputError(f"--sample must be at least 1, found {self.sample}")
        if self.random_directions < 0:
            raise InputError(f"--random-directions must be 0 or more, found {self.random_directions}")
        if not all(0 <= value < math.inf for value in self.strength) or not any(self.strength):
            raise InputError("--strength expects numbers above 0, e.g. `--strength 0.5 1 2`")
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise InputError("--prompt: a prompt is empty; give the text that the models are to answer")
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens must be at least 1, found {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature must be 0 or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p must be above 0 and at most 1, found {self.top_p}")
        if not 1 <= self.min_steerability <= 5:
            raise InputError(f"--min-steerability must be from 1 to 5, found {self.min_steerability}")
        if self.aggregate not in get_args(Aggregate):
            raise InputError(f"--aggregate expects {', '.join(get_args(Aggregate))}, found '{self.aggregate}'")

    @property
    def strengths(self) -> tuple[float, ...]:
        """Ascending, each once, 0 left out: that is the model as it is."""
        return tuple(sorted({float(value) for value in self.strength} - {0.0}))
