"""What is scored: features drawn from the partitions, and random directions as controls; each with the vector that is
added in its own model (the source) and the one that the stitch makes of it for the other (the target).

Legend: D width of either model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from safetensors.numpy import load_file

from modeldiff.catalogue.direction import direction_of
from modeldiff.catalogue.stored import STATISTICS_NAME
from modeldiff.console import say
from modeldiff.controls import random_directions
from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import InputError
from modeldiff.features.measures.score import ScoreSettings
from modeldiff.features.measures.score.result import GROUPS, RANDOM, route
from modeldiff.linear.stitch import Stitch
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace import Artifact


@dataclass(frozen=True, eq=False)
class ScoredDirection:
    number: int
    """Number of the feature, or of the random direction."""
    partition: str
    """A, shared, B or random."""
    source: str
    """The model whose direction it is, "a" or "b"."""
    unit_D: dict[str, torch.Tensor]
    """By side: what strength 1 adds, raw units, float32."""

    @property
    def target(self) -> str:
        return OTHER[self.source]

    @property
    def is_random(self) -> bool:
        return self.partition == RANDOM

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{'random' if self.is_random else 'feature'}-{self.number}-{self.source}"

    @property
    def name(self) -> str:
        """A name for people: `17 A -> B`, `random 3 B -> A`."""
        return f"{'random ' if self.is_random else ''}{self.number} {route(self.source)}"


def find_directions(
    settings: ScoreSettings, crosscoder: Crosscoder, features: Artifact, stitch: Stitch
) -> list[ScoredDirection]:
    """The features that are named or drawn, and for each model random directions of its features' median norm; ordered
    by group. Raises InputError: a feature does not exist or never fires, or there is nothing to score."""

    def moved(number: int, partition: str, source: str, unit_D: torch.Tensor) -> ScoredDirection:
        target_D = stitch.from_side(source).direction(unit_D, bias=settings.stitch_bias)
        return ScoredDirection(number, partition, source, {source: unit_D, OTHER[source]: target_D})

    found = []
    for feature in dict.fromkeys(settings.feature) or _drawn(settings, crosscoder, features):
        partition = crosscoder.partition_of(feature)
        for side in SIDES if partition == "shared" else (partition.lower(),):
            unit_D = direction_of(crosscoder, features, feature, side).unit_D
            found.append(moved(feature, partition, side, unit_D))
    if not found:
        raise InputError(f"{features.ref} has no living feature")
    for number, side in enumerate(SIDES):
        own = sorted((one.unit_D[side] for one in found if one.source == side), key=lambda unit_D: float(unit_D.norm()))
        if own:
            drawn = random_directions(settings.random_directions, own[len(own) // 2], settings.seed + number)
            found += [moved(i, RANDOM, side, unit_D) for i, unit_D in enumerate(drawn)]
    return sorted(found, key=lambda one: (list(GROUPS).index(one.partition), one.source))


def _drawn(settings: ScoreSettings, crosscoder: Crosscoder, features: Artifact) -> list[int]:
    max_F = load_file(features.file(STATISTICS_NAME))["max_activation"]
    chosen: list[int] = []
    for number, (partition, part) in enumerate(crosscoder.slices.items()):
        alive = part.start + np.flatnonzero(max_F[part] > 0)
        wanted = min(settings.sample, len(alive))
        if wanted < settings.sample:
            say(f"{partition}: {wanted} living features of {part.stop - part.start}, all are scored")
        chosen += sorted(np.random.default_rng([settings.seed, number]).choice(alive, wanted, replace=False).tolist())
    return chosen
