"""Settings of `modeldiff toy`, and the presets that fill in what is left out."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Self, get_args

from modeldiff.settings import Settings, setting, settings

Architecture = Literal["standard", "dsf-vectors", "dsf-norms", "dfc", "dfc-audited", "stitch-residual"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
Table = Literal["sizes", "dial", "selection", "self-diff"]
TABLES: tuple[Table, ...] = get_args(Table)

_QUICK_ARCHITECTURES = ("standard", "dfc", "dfc-audited", "stitch-residual")
_PAPER_SIZES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)
# Everything that a preset decides, for quick, laptop and paper. `paper` has the values of the paper's table 6 and
# figure 4. In `laptop` the concepts per dimension, the share of concepts that are active and the spread of their
# frequencies are the same, and mixed:0.7 has about the stitch R² of a real pair.
_DECIDED: dict[str, tuple[Any, Any, Any]] = {
    "concepts": (64, 256, 2048),
    "width_a": (16, 32, 256),
    "width_b": (16, 32, 256),
    "k_target": (2.0, 2.56, 20.48),
    "decay": (0.032, 0.008, 0.001),
    "map": (("gaussian",), ("gaussian", "mixed:0.7"), ("gaussian",)),
    "sizes": ((0.5, 1.0), (0.2, 0.5, 1.0), _PAPER_SIZES),
    "architectures": (_QUICK_ARCHITECTURES, ARCHITECTURES, ARCHITECTURES),
    "seeds": (2, 5, 5),
    "steps": (300, 1500, 390_625),
    "batch": (256, 512, 2048),
}
PRESETS = {
    preset: {name: values[column] for name, values in _DECIDED.items()}
    for column, preset in enumerate(("quick", "laptop", "paper"))
}


@settings
class ToySettings(Settings):
    """Which worlds, which dictionaries and how long they are trained. What is left out comes from the preset."""

    preset: Literal["quick", "laptop", "paper"] = setting(default="laptop", result=False)
    """Fills in what is not given. paper: the paper's 2048 concepts in width 256, twelve dictionary sizes, 800 M pairs
    (a GPU). laptop: all of that divided by 8 (256 concepts, width 32, k_target 2.56; decay times 8), three sizes,
    0.77 M pairs; under 30 minutes on two cores. quick: 64 concepts, width 16; under a minute, only to see it work."""
    concepts: int | None = setting(default=None, least=2)
    """Concepts of the world, shared and exclusive ones together."""
    width_a: int | None = setting(default=None, least=2)
    """Width of model A."""
    width_b: int | None = setting(default=None, least=2)
    """Width of model B."""
    exclusive_ratio: float = setting(default=0.05, least=0, most=1)
    """Share of the concepts that only one model has; half of it each. 0 with --map rotation is a self-diff."""
    k_target: float | None = setting(default=None, above=0)
    """Concepts active in a pair, on average; the presets: 1 % of the concepts, but 2 in quick."""
    correlation_rank: int = setting(default=10, least=0)
    """Rank of the correlation between the concepts' log-odds."""
    decay: float | None = setting(default=None, least=0)
    """How fast the concepts' frequency falls with their rank: exp(-decay * rank)."""
    translation: float = setting(default=0.1, least=0)
    """Standard deviation of the shift in the gaussian map."""
    noise: float = setting(default=0.01, least=0)
    """Standard deviation of the noise on the activations."""
    min_probability: float = setting(default=1e-4, above=0, most=1)
    """Least probability of a concept in a pair."""
    map: tuple[str, ...] = setting(default=())
    """How B's directions follow from A's: gaussian (the paper's), rotation, independent (drawn anew), or mixed:SHARE
    with the share of gaussian in it. Less of it makes the pair harder to stitch."""
    sizes: tuple[float, ...] = setting(default=(), above=0)
    """Sizes of the dictionary as shares of the concepts: 0.5 is one feature for two concepts."""
    architectures: tuple[Architecture, ...] = setting(default=())
    """standard, dsf-vectors, dsf-norms, dfc, dfc-audited, stitch-residual."""
    seeds: int | None = setting(default=None, least=1)
    """Worlds and trainings per row of a table: seeds 0, 1, ..."""
    k: int | None = setting(default=None, least=1)
    """Active features per pair; k_target, rounded, if left out."""
    exclusive: float = setting(default=0.05)
    """Share of the dictionary that each model has alone (dfc, dfc-audited)."""
    steps: int | None = setting(default=None, least=1)
    """Steps of training."""
    batch: int | None = setting(default=None, least=2)
    """Pairs of one step."""
    lr: float | None = setting(default=None)
    """Learning rate; as in `train` if left out."""
    tables: tuple[Table, ...] = setting(default=("sizes",))
    """What to run: sizes (maps x sizes x architectures), dial (from independent to stitchable models), selection
    (scores, ways to combine the encoders, dead windows), self-diff (two models with the same concepts: nothing is
    exclusive)."""
    jobs: int | None = setting(default=None, result=False, least=1)
    """Processes that work in parallel; one per core if left out, one on a GPU."""
    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda, cuda:N or mps. Results on another device differ in their random numbers."""

    def filled(self) -> Self:
        """These settings, with the preset's values for what was left out; the same, whoever chose the values."""
        given = {
            name: value if getattr(self, name) in (None, ()) else getattr(self, name)
            for name, value in PRESETS[self.preset].items()
        }
        given["k"] = self.k or max(1, round(given["k_target"]))
        return dataclasses.replace(self, **given)
