"""Worlds of sparse concepts with known truth, and pairs of activations drawn from them (paper 4.1).

Two models read the same world. Both have the shared concepts, each has some of its own, and each represents a concept
as a direction of its residual stream. The map from A's directions to B's says how much of one model a linear map
recovers from the other (equations 3 to 6).

Legend: B pairs, C concepts, R rank of their correlation, Da, Db widths, N active (pair, concept) entries of a batch.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag, normalize

from modeldiff.errors import InputError

SHARED, A_ONLY, B_ONLY = 0, 1, 2
CLASSES = {"shared": SHARED, "A": A_ONLY, "B": B_ONLY}
# Standard deviation of the entries of the gaussian map's matrix: the paper writes N(0, 0.25), read as the variance.
_GAUSSIAN_SD = 0.5
# Not the seed itself: a crosscoder of the same seed would draw the same numbers for its first decoder rows as a world
# does for A's concepts, and training would start from the truth.
_WORLD_SEED = 15_485_863
# Keeps the random numbers of the pairs apart from those of the world and of the initial weights of the same seed.
_STREAM = 7919


@dataclass(frozen=True, kw_only=True)
class WorldSpec:
    """What a world is drawn from (paper table 6; `ToySettings` says what each is). Raises InputError: more concepts are
    to be active than there are, or there is no such map."""

    concepts: int
    width_a: int
    width_b: int
    exclusive_ratio: float = 0.05
    k_target: float = 5.0
    correlation_rank: int = 10
    decay: float = 0.001
    translation: float = 0.1
    noise: float = 0.01
    min_probability: float = 1e-4
    map: str = "gaussian"

    def __post_init__(self) -> None:
        if self.k_target > self.concepts:
            raise InputError(
                f"--k-target must be at most the number of concepts ({self.concepts}), found {self.k_target:g}"
            )
        map_share(self.map)

    @property
    def n_exclusive(self) -> int:
        """Concepts that only A has, and likewise B."""
        return round(self.exclusive_ratio * self.concepts / 2)


def map_share(name: str) -> float:
    """Share of the gaussian map in B's directions; the rest is drawn anew. Raises InputError for another map."""
    plain = {"gaussian": 1.0, "rotation": 1.0, "independent": 0.0}
    if name in plain:
        return plain[name]
    kind, _, share = name.partition(":")
    with suppress(ValueError):
        if kind == "mixed" and 0 <= float(share) <= 1:
            return float(share)
    raise InputError(f"--map expects gaussian, rotation, independent or mixed:SHARE (0 to 1), found '{name}'")


@dataclass(frozen=True)
class World:
    """Concepts and their directions. classes_C: int64, SHARED, A_ONLY or B_ONLY; directions: by side, (C, D) float32,
    zero rows for concepts that the model does not have; decay_C: factor of each concept's probability, exp(-decay *
    rank) with ranks in random order; loadings_CR: the low-rank part of the correlation between concepts' log-odds."""

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
        a_CD = normalize(torch.randn(n, spec.width_a, generator=random))
        b_CD = _in_model_b(spec, a_CD, random)
        # In random order, so that nothing about a concept follows from its number but its class.
        ranks_C = torch.randperm(n, generator=random)
        loadings = torch.randn(n, spec.correlation_rank, generator=random)
        loadings *= 0.5 / math.sqrt(max(1, spec.correlation_rank))
        directions = {"a": a_CD * (classes_C != B_ONLY)[:, None], "b": b_CD * (classes_C != A_ONLY)[:, None]}
        return cls(spec, classes_C, directions, torch.exp(-spec.decay * ranks_C), loadings)

    def probabilities(self, random: torch.Generator) -> torch.Tensor:
        """p_C of one batch (paper eq. 7 to 9), on the generator's device. The log-odds are drawn anew for every batch:
        with fixed ones, and independent draws, concepts would not occur together at all."""
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
        widest = max(spec.width_a, spec.width_b)
        rotation = torch.linalg.qr(torch.randn(widest, widest, generator=random))[0]
        return a_CD @ rotation[: spec.width_a, : spec.width_b]
    matrix = _GAUSSIAN_SD * torch.randn(spec.width_a, spec.width_b, generator=random)
    shift = spec.translation * torch.randn(spec.width_b, generator=random)
    mapped_CD = _median_one(a_CD @ matrix + shift)
    new_CD = normalize(torch.randn(spec.concepts, spec.width_b, generator=random))
    share = map_share(spec.map)
    return _median_one(share * mapped_CD + (1 - share) * new_CD)


def _median_one(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1).median()


class Active(NamedTuple):
    """Which concepts are active in a batch, sorted by pair."""

    pairs_N: torch.Tensor
    concepts_N: torch.Tensor
    strengths_N: torch.Tensor


class ConceptStream:
    """Batches of paired activations of a world, without end; the work is in proportion to the concepts that are active.
    Another `part` of the same seed is independent (training, evaluation); another device gives other numbers."""

    def __init__(self, world: World, *, batch: int, seed: int, part: int = 0, device: str = "cpu") -> None:
        self.world = world
        self.batch = batch
        self._random = torch.Generator(device).manual_seed((seed * _STREAM + part) * _STREAM + 1)
        self._directions = {side: rows.to(device) for side, rows in world.directions.items()}

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_a (B, Da), x_b (B, Db)), float32."""
        return self.activations(self.draw())

    def pairs(self, least: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batches together, (x_a (N, Da), x_b (N, Db)) with N at least `least`."""
        batches = [self.next() for _ in range(-(-least // self.batch))]
        return torch.cat([x_a for x_a, _ in batches]), torch.cat([x_b for _, x_b in batches])

    def draw(self) -> Active:
        """The active concepts of a batch; no pair is left without one (paper algorithm 2: drawn again until it has)."""
        random, device = self._random, self._random.device
        p_C = self.world.probabilities(random)
        pairs_N, concepts_N = self._occurrences(p_C)
        empty = torch.ones(self.batch, dtype=torch.bool, device=device)
        empty[pairs_N] = False
        while bool(empty.any()):
            rows = empty.nonzero()[:, 0]
            hit = torch.rand(len(rows), len(p_C), generator=random, device=device) < p_C
            which, concepts = hit.nonzero(as_tuple=True)
            pairs_N = torch.cat([pairs_N, rows[which]])
            concepts_N = torch.cat([concepts_N, concepts])
            empty[rows[which]] = False
        order = torch.argsort(pairs_N * len(p_C) + concepts_N)
        strengths_N = torch.rand(len(order), generator=random, device=device)
        return Active(pairs_N[order], concepts_N[order], strengths_N)

    def _occurrences(self, p_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bernoulli(p_C) for every pair: a binomial number of pairs for each concept, then which ones they are. Pairs
        are drawn one by one and those drawn before again, which makes every set of distinct pairs equally likely."""
        random, device = self._random, self._random.device
        rows = torch.full_like(p_C, float(self.batch))
        missing_C = torch.binomial(rows, p_C, generator=random).long()
        numbers_C = torch.arange(len(p_C), device=device)
        keys = torch.zeros(0, dtype=torch.long, device=device)
        while bool((missing_C > 0).any()):
            concepts = numbers_C.repeat_interleave(missing_C)
            places = torch.randint(self.batch, (len(concepts),), generator=random, device=device)
            wanted = len(keys) + len(concepts)
            keys, times = torch.cat([keys, concepts * self.batch + places]).unique(return_counts=True)
            if len(keys) == wanted:
                break
            missing_C = torch.bincount((keys // self.batch).repeat_interleave(times - 1), minlength=len(p_C))
        return keys % self.batch, keys // self.batch

    def activations(self, active: Active) -> tuple[torch.Tensor, torch.Tensor]:
        """x = sum over a pair's concepts of strength times direction, plus noise, in either model."""
        pairs_N, concepts_N, strengths_N = active
        counts_B = torch.bincount(pairs_N, minlength=self.batch)
        offsets_B = counts_B.cumsum(0) - counts_B
        made = []
        for rows_CD in self._directions.values():
            x_BD = embedding_bag(concepts_N, rows_CD, offsets_B, mode="sum", per_sample_weights=strengths_N)
            noise_BD = torch.randn(x_BD.shape, generator=self._random, device=x_BD.device)
            made.append(x_BD.add_(noise_BD, alpha=self.world.spec.noise))
        return made[0], made[1]
