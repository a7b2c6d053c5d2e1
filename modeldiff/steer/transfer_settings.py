"""Settings of `steer transfer`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import Settings, setting, settings


@settings
class TransferSettings(Settings):
    """Which direction is moved, between which models, by which rules, and how the outcome is judged."""

    source: Literal["A", "B"] = setting()
    """The model that the direction belongs to."""

    # The other one in any case: it may be said, and is checked.
    target: Literal["A", "B"] | None = setting(default=None, result=False)
    """The model it is moved to. Default: the other one."""

    # Files and references are inputs with digests: where they lie makes no difference.
    vector: Path | None = setting(default=None, result=False)
    """A .npy or .safetensors file with one array (D,) or (N, D), raw units; FILE:KEY names one of several tensors."""

    from_prompts: tuple[Path, ...] = setting(default=(), result=False, variadic=True)
    """Two files, POSITIVE and NEGATIVE: the direction is the mean residual over the response tokens of the one minus
    the other's (paper 8.2). One prompt per line, or .jsonl with prompt and, if wanted, system and response."""

    vector_from_feature: int | None = setting(default=None)
    """The decoder direction of this feature at its maximum activation."""

    truth_prompts: tuple[Path, ...] = setting(default=(), result=False, variadic=True)
    """With --vector or --vector-from-feature: two files as for --from-prompts; their contrast, made in the target
    model, is what the moved direction is compared with."""

    compare: bool = setting(default=True)
    """Make the contrast of --from-prompts in the target model too, and compare."""

    top: int = setting(default=10)
    """Rule `paper`: number of shared features."""

    nonzeros: int = setting(default=10)
    """Rule `lstsq`: number of shared features."""

    ridge: float = setting(default=1.0)
    """Rule `ridge`: penalty, as a share of the mean squared length of the source's decoders."""

    rescale: Literal["median", "source"] = setting(default="median")
    """Norm of a moved direction: the same in units of each model's median norm, or the very norm it has in the source
    (paper eq. 17)."""

    random: int = setting(default=100)
    """Random directions for the null of the cosines."""

    random_effects: int = setting(default=8)
    """Random directions of either model for the null of the steering effect; each costs two passes over the prompts in
    the target model for every rule."""

    effect_strength: float = setting(default=2.0)
    """Norm at which steering effects are compared, in norms of the target's own contrast."""

    prompt: tuple[str, ...] = setting(default=(), variadic=True)
    """Texts for the target model to continue, unsteered and steered by each rule's direction."""

    strength: tuple[float, ...] = setting(default=(1.0,), variadic=True)
    """For --prompt: multiples of the moved direction."""

    max_new_tokens: int = setting(default=80)
    """Longest response and continuation in tokens."""

    temperature: float = setting(default=0.0)
    """0: always the likeliest token; otherwise draw."""

    top_p: float = setting(default=1.0)
    """When drawing: only from the likeliest tokens that hold this much of the probability."""

    seed: int = setting(default=0)
    """Of the drawing, and of the random directions."""

    chat: Literal["auto", "yes", "no"] = setting(default="auto")
    """Put each prompt to a model as a user's message, in its chat format; auto: when its tokenizer has one."""

    features: str | None = setting(default=None, result=False)
    """The features artifact. Default: the latest (of --crosscoder, if given)."""

    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder. Default: the one the features were made from."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch. Default: the latest of the features' activations."""

    model_path_a: str | None = setting(default=None, result=False)
    """Where model A is now, if not where it was at harvest time (a folder, a GGUF file or a hub name)."""

    model_path_b: str | None = setting(default=None, result=False)
    """Likewise for model B."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(default="auto", result=False)
    """Number format of the models; auto: bfloat16 on CUDA, float32 elsewhere."""

    @property
    def sides(self) -> tuple[str, str]:
        """("a", "b") or ("b", "a"): source, target."""
        return ("a", "b") if self.source == "A" else ("b", "a")

    @property
    def truth(self) -> tuple[Path, ...]:
        """The files whose contrast is made in the target model; empty: nothing is compared."""
        return self.truth_prompts or (self.from_prompts if self.compare else ())

    def __post_init__(self) -> None:
        if self.source not in ("A", "B"):
            raise InputError(f"--from expects A or B, found '{self.source}'")
        if self.target == self.source:
            raise InputError(f"--from and --to are both {self.source}: a direction is moved to the other model")
        if self.rescale not in ("median", "source"):
            raise InputError(f"--rescale expects median or source, found '{self.rescale}'")
        given = [self.vector is not None, bool(self.from_prompts), self.vector_from_feature is not None]
        if sum(given) != 1:
            raise InputError(
                "give the direction in one way: --vector FILE, --from-prompts POSITIVE NEGATIVE or "
                "--vector-from-feature ID"
            )
        for flag, files in (("--from-prompts", self.from_prompts), ("--truth-prompts", self.truth_prompts)):
            if files and len(files) != 2:
                raise InputError(f"{flag} expects two files, POSITIVE and NEGATIVE, found {len(files)}")
        if self.from_prompts and self.truth_prompts:
            raise InputError("--from-prompts is compared with its own prompts: leave out --truth-prompts")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for flag, value, least in (
            ("--top", self.top, 1),
            ("--nonzeros", self.nonzeros, 1),
            ("--random", self.random, 2),
            ("--random-effects", self.random_effects, 0),
            ("--max-new-tokens", self.max_new_tokens, 1),
        ):
            if value < least:
                raise InputError(f"{flag} must be at least {least}, found {value}")
        if self.random_effects > self.random:
            raise InputError(f"--random-effects must be at most --random ({self.random}), found {self.random_effects}")
        if not 0 < self.ridge < math.inf:
            raise InputError(f"--ridge must be above 0, found {self.ridge}")
        if not 0 < self.effect_strength < math.inf:
            raise InputError(f"--effect-strength must be above 0, found {self.effect_strength}")
        if not self.strength or not all(math.isfinite(value) for value in self.strength):
            raise InputError("--strength expects one or more finite numbers, e.g. `--strength 1 4`")
        if not all(prompt.strip() for prompt in self.prompt):
            raise InputError("--prompt: a prompt is empty; give the text that the model is to continue")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature must be 0 or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p must be above 0 and at most 1, found {self.top_p}")
