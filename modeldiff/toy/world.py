"""A world of sparse concepts with known truth: which concepts there are, who has them, and where they point.

Two models read the same world. Both have the shared concepts, each has some of its own, and each represents a concept
as a direction of its residual stream. The map from A's directions to B's says how much of one model a linear map
recovers from the other (paper 4.1, equations 3 to 6).

Legend: C concepts, Da, Db widths of the models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from modeldiff.errors import InputError

MAPS = ("gaussian", "rotation", "independent")
SHARED, A_ONLY, B_ONLY = 0, 1, 2
CLASSES = {"shared": SHARED, "A": A_ONLY, "B": B_ONLY}
# Standard deviation of the entries of the gaussian map's matrix: the paper writes N(0, 0.25), read as the variance.
_GAUSSIAN_SD = 0.5
# Not the seed itself: a crosscoder of the same seed would draw the same numbers for its first decoder rows as this file
# does for A's concepts, and training would start from the truth.
_WORLD_SEED = 15_485_863


@dataclass(frozen=True, kw_only=True)
class WorldSpec:
    """What a world is drawn from (paper table 6, whose values are the defaults of the `paper` preset).

    Raises:
        InputError: a value that makes no sense, named as the command line's option.
    """

    concepts: int
    """n."""
    width_a: int
    width_b: int
    exclusive_ratio: float = 0.05
    """Share of the concepts that only one model has; half of it each."""
    k_target: float = 5.0
    """Concepts active in a pair, on average."""
    correlation_rank: int = 10
    decay: float = 0.001
    translation: float = 0.1
    noise: float = 0.01
    min_probability: float = 1e-4
    map: str = "gaussian"
    """gaussian (the paper's), rotation, independent, or mixed:SHARE with the share of gaussian in it."""

    def __post_init__(self) -> None:
        for name, least in (("concepts", 2), ("width_a", 2), ("width_b", 2), ("correlation_rank", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{_dashed(name)} must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.exclusive_ratio <= 1:
            raise InputError(
                "--exclusive-ratio is the share of the concepts that only one model has, "
                f"0 to 1, found {self.exclusive_ratio}"
            )
        if not 0 < self.k_target <= self.concepts:
            raise InputError(
                f"--k-target must be above 0 and at most the number of concepts ({self.concepts}), "
                f"found {self.k_target:g}"
            )
        for name in ("decay", "translation", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"--{_dashed(name)} must not be negative, found {getattr(self, name)}")
        if not 0 < self.min_probability <= 1:
            raise InputError(f"--min-probability must be above 0 and at most 1, found {self.min_probability}")
        map_share(self.map)

    @property
    def n_exclusive(self) -> int:
        """Concepts that only A has, and likewise B."""
        return round(self.exclusive_ratio * self.concepts / 2)


def map_share(name: str) -> float:
    """Share of the gaussian map in B's directions; the rest is drawn anew.

    Raises:
        InputError: no such map.
    """
    if name in MAPS:
        return 0.0 if name == "independent" else 1.0
    kind, _, share = name.partition(":")
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if kind != "mixed" or not 0 <= value <= 1:
        raise InputError(f"--map expects gaussian, rotation, independent or mixed:SHARE (0 to 1), found '{name}'")
    return value


@dataclass(frozen=True)
class World:
    """Concepts and their directions.

    Attributes:
        classes_C: int64, SHARED, A_ONLY or B_ONLY.
        directions: by side, (C, D) float32; zero rows for concepts that the model does not have.
        decay_C: factor of each concept's probability, exp(-decay * rank) with ranks in random order.
        loadings_CR: the low-rank part of the correlation between concepts' log-odds.
    """

    spec: WorldSpec
    classes_C: torch.Tensor
    directions: dict[str, torch.Tensor]
    decay_C: torch.Tensor
    loadings_CR: torch.Tensor

    @classmethod
    def drawn(cls, spec: WorldSpec, seed: int) -> World:
        """The world of a seed. All random numbers are drawn on the CPU: it is the same on every device."""
        random = torch.Generator().manual_seed(_WORLD_SEED + seed)
        n, own = spec.concepts, spec.n_exclusive
        classes_C = torch.full((n,), SHARED)
        classes_C[:own] = A_ONLY
        classes_C[own : 2 * own] = B_ONLY
        a_CD = _unit(torch.randn(n, spec.width_a, generator=random))
        b_CD = _in_model_b(spec, a_CD, random)
        # In random order, so that nothing about a concept follows from its number but its class.
        ranks_C = torch.randperm(n, generator=random)
        loadings = torch.randn(n, spec.correlation_rank, generator=random)
        loadings *= 0.5 / math.sqrt(max(1, spec.correlation_rank))
        return cls(
            spec,
            classes_C,
            {"a": a_CD * (classes_C != B_ONLY)[:, None], "b": b_CD * (classes_C != A_ONLY)[:, None]},
            torch.exp(-spec.decay * ranks_C),
            loadings,
        )

    def probabilities(self, random: torch.Generator) -> torch.Tensor:
        """p_C of one batch (paper eq. 7 to 9), on the generator's device.

        The log-odds are drawn anew for every batch: with fixed probabilities and independent draws, concepts would not
        occur together at all, however their log-odds correlate.
        """
        device = random.device
        loadings_CR, decay_C = self.loadings_CR.to(device), self.decay_C.to(device)
        common_R = torch.randn(loadings_CR.shape[1], generator=random, device=device)
        own_C = torch.randn(len(decay_C), generator=random, device=device)
        p_C = torch.sigmoid(loadings_CR @ common_R + own_C) * decay_C
        p_C *= self.spec.k_target / p_C.sum()
        return p_C.clamp(self.spec.min_probability, 1.0)


def _in_model_b(spec: WorldSpec, a_CD: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Directions in B of all concepts, scaled to the median norm of A's (which is 1)."""
    if spec.map == "rotation":
        # The orthogonal factor of a gaussian matrix; with different widths an isometry or a projection. No translation:
        # this is the map under which nothing at all differs.
        return a_CD @ torch.linalg.qr(torch.randn(max(spec.width_a, spec.width_b), max(spec.width_a, spec.width_b),
                                                  generator=random))[0][: spec.width_a, : spec.width_b]  # fmt: skip
    matrix = _GAUSSIAN_SD * torch.randn(spec.width_a, spec.width_b, generator=random)
    shift = spec.translation * torch.randn(spec.width_b, generator=random)
    mapped_CD = _median_one(a_CD @ matrix + shift)
    new_CD = _unit(torch.randn(spec.concepts, spec.width_b, generator=random))
    share = map_share(spec.map)
    return _median_one(share * mapped_CD + (1 - share) * new_CD)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def _median_one(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1).median()


def _dashed(name: str) -> str:
    return name.replace("_", "-")
