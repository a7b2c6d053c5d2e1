"""Settings of `steer` and of `steer transfer`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import Drawing, HarvestedModels, setting, settings

_MOST_STRENGTHS = 1000


@settings
class Steering(Drawing, HarvestedModels):
    """Settings of what pushes a model along a direction."""

    strength: tuple[float, ...] = setting(default=(1.0,))
    """How hard: 1 adds a feature's direction at its maximum activation, or a moved direction as it is; negative values
    push against it. `steer` also takes ranges, FROM:TO:STEP."""
    seed: int = setting(default=0, least=0)
    """Of the drawing, the same for every strength; and of the random directions."""
    # References are inputs with digests.
    features: str | None = setting(default=None, result=False)
    """The features artifact, whose crosscoder is used. Default: the latest."""
    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions. Default: the latest of the activations behind the crosscoder."""

    def check(self) -> None:
        if not self.strength:
            raise InputError("--strength expects one or more finite numbers, e.g. `--strength -2 1 4`")


@settings
class SteerSettings(Steering):
    """Which feature is pushed in which model, how hard, and what the model is asked to continue."""

    model: Literal["A", "B"] = setting()
    """The model to steer."""
    feature: int = setting(least=0)
    """Number of the feature, as `modeldiff features` lists it."""
    both: bool = setting(default=False)
    """Steer the other model as well, side by side."""
    other_by: Literal["auto", "stitch"] = setting(default="auto")
    """With --both: what pushes the other model; auto: its own decoder row of a shared feature, else the direction moved
    through the stitch; stitch: that in any case."""
    stitch_bias: bool = setting(default=False)
    """With --both: add the map's constant to the direction that is moved, as the DFC paper does (eq. 18). It is the
    same for all features."""
    random_directions: int = setting(default=1, least=0)
    """Random directions of the same norm that each model is pushed along as well, at every strength: what any push of
    that size does. 0: none, then there is nothing to compare with."""
    prompt: tuple[str, ...] = setting(default=())
    """Texts to continue."""
    # The prompts themselves are an input with a digest: where the file lies makes no difference.
    prompts: Path | None = setting(default=None, result=False)
    """A file in place of --prompt: one prompt per line, or .jsonl with `prompt` or `text`, which may have several."""
    # When drawing, the run adds it to the fingerprint: the random numbers are dealt out by batch.
    batch: int = setting(default=32, result=False, least=1)
    """Texts written at a time; several strengths share a batch."""

    def check(self) -> None:
        super().check()
        if bool(self.prompt) == bool(self.prompts):
            raise InputError("give what is to be continued in one way: --prompt TEXT or --prompts FILE")
        if not self.both and (self.other_by != "auto" or self.stitch_bias or self.stitch):
            raise InputError("--other-by, --stitch-bias and --stitch are about the other model: add --both")


@settings
class TransferSettings(Steering):
    """Which direction is moved from which model to the other, and what the other is asked to continue."""

    source: Literal["A", "B"] = setting(flag="--from")
    """The model that the direction belongs to."""
    # Files and references are inputs with digests: where they lie makes no difference.
    vector: Path | None = setting(default=None, result=False)
    """A .npy or .safetensors file with one array (D,) or (N, D), raw units."""
    from_prompts: tuple[Path, ...] = setting(default=(), result=False)
    """Two files, POSITIVE and NEGATIVE: the direction is the mean residual over the response tokens of the one minus
    the other's (paper 8.2). One prompt per line, or .jsonl with prompt and, if wanted, system and response."""
    vector_from_feature: int | None = setting(default=None, least=0)
    """The decoder direction of this feature at its maximum activation."""
    top: int = setting(default=10, least=1)
    """Rule `paper`: number of shared features."""
    prompt: tuple[str, ...] = setting(default=())
    """Texts for the other model to continue, unsteered and steered by each rule's direction."""

    def check(self) -> None:
        super().check()
        given = [self.vector is not None, bool(self.from_prompts), self.vector_from_feature is not None]
        if sum(given) != 1:
            raise InputError(
                "give the direction in one way: --vector FILE, --from-prompts POSITIVE NEGATIVE or "
                "--vector-from-feature ID"
            )
        if self.from_prompts and len(self.from_prompts) != 2:
            raise InputError(f"--from-prompts expects two files, POSITIVE and NEGATIVE, found {len(self.from_prompts)}")


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths of a number, or of a range FROM:TO:STEP with both ends where the step meets them. Raises
    InputError: it is neither, the step leads away from the end or nowhere, or the range has too many strengths."""
    try:
        numbers = [Decimal(part) for part in text.split(":")]
    except InvalidOperation:
        numbers = []
    if len(numbers) not in (1, 3) or not all(number.is_finite() for number in numbers):
        raise InputError(f"--strength expects a number or a range FROM:TO:STEP such as -4:4:0.5, found '{text}'")
    if len(numbers) == 1:
        return (float(numbers[0]),)
    first, last, step = numbers
    if step == 0 or (last - first) * step < 0:
        raise InputError(f"--strength {text}: the step {step} does not lead from {first} to {last}")
    steps = (last - first) / step
    if steps >= _MOST_STRENGTHS:
        raise InputError(f"--strength {text}: more than {_MOST_STRENGTHS} strengths; take a larger step")
    # Decimal, so that steps of 0.1 arrive at 0 and at 1 exactly.
    return tuple(float(first + step * i) for i in range(int(steps) + 1))
