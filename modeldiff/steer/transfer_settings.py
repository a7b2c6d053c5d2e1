"""Settings of `steer transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import Drawing, HarvestedModels, setting, settings


@settings
class TransferSettings(Drawing, HarvestedModels):
    """Which direction is moved, between which models, by which rules, and how the outcome is judged."""

    source: Literal["A", "B"] = setting(flag="--from")
    """The model that the direction belongs to."""

    # The other one in any case: it may be said, and is checked.
    target: Literal["A", "B"] | None = setting(default=None, result=False, flag="--to")
    """The model it is moved to. Default: the other one."""

    # Files and references are inputs with digests: where they lie makes no difference.
    vector: Path | None = setting(default=None, result=False)
    """A .npy or .safetensors file with one array (D,) or (N, D), raw units; FILE:KEY names one of several tensors."""

    from_prompts: tuple[Path, ...] = setting(default=(), result=False, variadic=True)
    """Two files, POSITIVE and NEGATIVE: the direction is the mean residual over the response tokens of the one minus
    the other's (paper 8.2). One prompt per line, or .jsonl with prompt and, if wanted, system and response."""

    vector_from_feature: int | None = setting(default=None, least=0)
    """The decoder direction of this feature at its maximum activation."""

    truth_prompts: tuple[Path, ...] = setting(default=(), result=False, variadic=True)
    """With --vector or --vector-from-feature: two files as for --from-prompts; their contrast, made in the target
    model, is what the moved direction is compared with."""

    top: int = setting(default=10, least=1)
    """Rule `paper`: number of shared features."""

    prompt: tuple[str, ...] = setting(default=(), variadic=True)
    """Texts for the target model to continue, unsteered and steered by each rule's direction."""

    strength: tuple[float, ...] = setting(default=(1.0,), variadic=True)
    """For --prompt: multiples of the moved direction."""

    seed: int = setting(default=0, least=0)
    """Of the drawing, and of the random directions."""

    features: str | None = setting(default=None, result=False)
    """The features artifact. Default: the latest (of --crosscoder, if given)."""

    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder. Default: the one the features were made from."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch. Default: the latest of the features' activations."""

    @property
    def sides(self) -> tuple[str, str]:
        """("a", "b") or ("b", "a"): source, target."""
        return ("a", "b") if self.source == "A" else ("b", "a")

    @property
    def truth(self) -> tuple[Path, ...]:
        """The files whose contrast is made in the target model; empty: nothing is compared."""
        return self.truth_prompts or self.from_prompts

    def check(self) -> None:
        """One direction, moved to the other model, and files in pairs."""
        if self.target == self.source:
            raise InputError(f"--from and --to are both {self.source}: a direction is moved to the other model")
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
        if not self.strength:
            raise InputError("--strength expects one or more finite numbers, e.g. `--strength 1 4`")
        if not all(prompt.strip() for prompt in self.prompt):
            raise InputError("--prompt: a prompt is empty; give the text that the model is to continue")
