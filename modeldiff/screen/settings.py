"""Settings of the screen. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from modeldiff.errors import InputError
from modeldiff.judge.settings import JudgeSettings
from modeldiff.settings import setting, settings


@settings
class ScreenSettings(JudgeSettings):
    """Which crosscoder is screened, how strict each step is, and who judges what is left."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations, with their texts, to measure on. Default: those the crosscoder was trained on."""

    exclusive: Literal["A", "B"] | None = setting(default=None)
    """Only what this model has. Default: both models, one list each."""

    partition: Literal["anywhere", "exclusive"] = setting(default="anywhere")
    """Start from all features that the model has (anywhere), or from its exclusive partition alone: which partition a
    feature ends in differs from seed to seed."""

    top: int = setting(default=10)
    """Length of the short list, for each model."""

    least_firings: int = setting(default=60)
    """Leave out features that fire on fewer of the pairs whose impact is measured."""

    most_density: float = setting(default=0.1)
    """Leave out features that fire on a larger share of the pairs: what is on so often is no concept with a name."""

    most_predictable: float = setting(default=0.8)
    """Leave out features of which the other model explains this share or more of what it explains of shared ones read
    from one model alone: R² other / own against the median of these."""

    twin: float = setting(default=0.7)
    """Leave out features that correlate so highly with an exclusive feature of the other model; in the short list,
    fold features that correlate so highly with one of another partition above them."""

    least_asymmetry: float = setting(default=0.5)
    """Leave out features whose removal changes the other model's predictions nearly as much: (own - other) /
    (own + other), 0.5 is three to one."""

    most_surface: float = setting(default=0.6)
    """Leave out features of whose activation the last two words explain this share or more: both models see these."""

    least_detection: float = setting(default=0.8)
    """With a judge: leave out features whose explanation tells fewer of the held-out texts right (paper 7)."""

    pairs: int = setting(default=60_000)
    """Measure impact on about this many pairs."""

    samples: int = setting(default=8)
    """Next tokens drawn at every position to measure impact: more are less noisy, and a backward pass each."""

    score: bool = setting(default=True)
    """Also score what the short list's features do when they are pushed in both models."""

    seed: int = setting(default=0)
    """Of everything that is drawn."""

    # The weights are an input with a digest: where they lie makes no difference.
    model_path_a: str | None = setting(default=None, result=False)
    """Where model A is now, if not where it was at harvest time (a folder, a GGUF file or a hub name)."""

    model_path_b: str | None = setting(default=None, result=False)
    """The same for model B."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 1:
            raise InputError(f"--top must be at least 1, found {self.top}")
        if self.least_firings < 1:
            raise InputError(f"--least-firings must be at least 1, found {self.least_firings}")
        if self.pairs < 1:
            raise InputError(f"--pairs must be at least 1, found {self.pairs}")
        if self.samples < 1:
            raise InputError(f"--samples must be at least 1, found {self.samples}")
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, found {self.seed}")
        for name in ("most_density", "most_predictable", "most_surface", "least_detection", "twin"):
            if not 0 < getattr(self, name) <= 1:
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option} must be above 0 and at most 1, found {getattr(self, name)}")
        if not -1 <= self.least_asymmetry < 1:
            raise InputError(f"--least-asymmetry must be at least -1 and below 1, found {self.least_asymmetry}")
