"""Settings of the steer stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import Drawing, OnDevice, setting, settings


@settings
class SteerSettings(Drawing, OnDevice):
    """Which feature is pushed in which model, how hard, and what the model is asked to continue."""

    model: Literal["A", "B"] = setting()
    """The model to steer."""

    feature: int = setting(least=0)
    """Number of the feature, as `modeldiff features` lists it."""

    strength: tuple[float, ...] = setting(default=(1.0,), variadic=True)
    """How hard: 1 adds the feature's direction at its maximum activation, negative values push against it. On the
    command line also ranges, FROM:TO:STEP."""

    both: bool = setting(default=False)
    """Steer the other model as well, side by side."""

    other_by: Literal["auto", "stitch", "decoder"] = setting(default="auto")
    """With --both: what pushes the other model, the direction moved through the stitch, or its own decoder row (shared
    features only); auto: its own decoder row where it has one."""

    stitch_bias: bool = setting(default=False)
    """With --both: add the map's constant to the direction that is moved, as the DFC paper does (eq. 18). It is the
    same for all features."""

    random_directions: int = setting(default=1, least=0)
    """Random directions of the same norm that each model is pushed along as well, at every strength: what any push of
    that size does. 0: none, then there is nothing to compare with."""

    prompt: tuple[str, ...] = setting(default=(), variadic=True)
    """Texts to continue."""

    # The prompts themselves are an input with a digest: where the file lies makes no difference.
    prompts: Path | None = setting(default=None, result=False)
    """A file with one prompt per line, in place of --prompt."""

    features: str | None = setting(default=None, result=False)
    """The features artifact that the number refers to. Default: the latest (of --crosscoder, if given)."""

    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder that the number refers to. Default: the one the features were made from."""

    stitch: str | None = setting(default=None, result=False)
    """With --both: the stitch artifact. Default: the latest of the activations behind the crosscoder."""

    seed: int = setting(default=0, least=0)
    """Of the drawing, the same for every strength; and of the random directions."""

    model_path: str | None = setting(default=None, result=False)
    """Where the model is now, if not where it was at harvest time (a folder, a GGUF file or a hub name)."""

    other_model_path: str | None = setting(default=None, result=False)
    """With --both: where the other model is now."""

    # When drawing, the run adds it to the fingerprint: the random numbers are dealt out by batch.
    batch: int = setting(default=32, result=False, least=1)
    """Texts written at a time; several strengths share a batch."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto", result=False)
    """Number format of the model; auto: bfloat16 on CUDA, float32 elsewhere."""

    def check(self) -> None:
        """There is something to push and to continue, and the other model's options go with --both."""
        if not self.strength:
            raise InputError("--strength expects one or more finite numbers, e.g. `--strength -2 1 4`")
        if self.prompt and self.prompts:
            raise InputError("give the prompts with --prompt or with --prompts, not both")
        if not self.prompt and not self.prompts:
            raise InputError("there is nothing to continue: give --prompt TEXT or --prompts FILE")
        if not self.both and (self.other_by != "auto" or self.stitch_bias or self.stitch or self.other_model_path):
            raise InputError(
                "--other-by, --stitch-bias, --stitch and --other-model-path are about the other model: add --both"
            )
        if self.other_by == "decoder" and (self.stitch_bias or self.stitch):
            raise InputError("--other-by decoder moves nothing: leave out --stitch-bias and --stitch")
