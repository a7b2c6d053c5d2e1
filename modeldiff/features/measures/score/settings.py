"""Settings of the exclusivity score. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from modeldiff.errors import InputError
from modeldiff.judge.settings import JudgeSettings
from modeldiff.settings import Drawing, HarvestedModels, setting, settings

# Paper B.5.
PROMPTS = ("What's on your mind?", "What do you want to talk about?", "Tell me something")
STRENGTHS = tuple(float(strength) for strength in range(11))

KIND = "score"


@settings
class ScoreSettings(JudgeSettings, Drawing, HarvestedModels):
    """Which features are pushed in both models, how, and who says whether the same came of it."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    features: str | None = setting(default=None, result=False)
    """The features artifact: a version, `features:2`, or a name. Default: the latest."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions. Default: the latest of the activations that the features were measured on."""

    sample: int = setting(default=20, least=1)
    """Score so many living features of each partition, drawn at random (the paper: 500). Shared ones should score low;
    they are scored both ways."""

    feature: tuple[int, ...] = setting(default=())
    """Score these features, in place of a sample."""

    random_directions: int = setting(default=10, least=0)
    """Also push so many random directions in each model, as long as its scored features usually are: what the score
    says about nothing in particular."""

    strength: tuple[float, ...] = setting(default=STRENGTHS, least=0)
    """How hard: 1 adds the direction at the feature's maximum activation. 0, the model as it is, is always there."""

    stitch_bias: bool = setting(default=False)
    """Move directions with the stitch's constant added, as the paper writes it (eq. 18): the same constant in every
    direction."""

    judge: Literal["local", "openai"] | None = setting(default=None)  # type: ignore[assignment]
    """Who rates what the models write, needed: a chat model on this machine (local), or any OpenAI-compatible endpoint
    (openai)."""

    prompt: tuple[str, ...] = setting(default=PROMPTS)
    """What both models are asked. The ratings of the prompts are averaged."""

    max_new_tokens: int = setting(default=200, least=1)
    temperature: float = setting(default=0.7, least=0)
    top_p: float = setting(default=0.9, above=0, most=1)

    seed: int = setting(default=0, least=0)
    """Of the sample, the random directions and the texts."""

    def check(self) -> None:
        """There is a judge, and something to push and to ask."""
        if self.judge is None:
            raise InputError(
                "the score needs a judge that rates what the models write: give --judge local --judge-model MODEL "
                "(a chat model on this machine) or --judge openai --judge-model NAME (an OpenAI-compatible endpoint)"
            )
        super().check()
        if not any(self.strength):
            raise InputError("--strength expects numbers above 0, e.g. `--strength 0.5 1 2`")
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise InputError("--prompt: a prompt is empty; give the text that the models are to answer")

    @property
    def strengths(self) -> tuple[float, ...]:
        """Ascending, each once. 0 comes first: without it nobody can say what the push changed."""
        return tuple(sorted({0.0, *map(float, self.strength)}))
