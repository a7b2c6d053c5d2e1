"""What is scored: features drawn from the partitions, and random directions as controls; each with the vector that is
added in its own model (the source) and the one that the stitch makes of it for the other (the target).

Legend: D width of either model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from safetensors.numpy import load_file

from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.direction import STATISTICS_NAME, direction_of
from modeldiff.errors import InputError
from modeldiff.features.measures.score.settings import ScoreSettings
from modeldiff.linear.stitch import Stitch
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact

RANDOM = "random"
# The order of tables: exclusive, shared, random.
_GROUPS = (("A", "a"), ("B", "b"), ("shared", "a"), ("shared", "b"), (RANDOM, "a"), (RANDOM, "b"))


@dataclass(frozen=True, eq=False)
class Subject:
    """A direction to push in both models."""

    number: int
    """Of the feature; of the random direction."""
    partition: str
    """A, shared, B or random."""
    source: str
    """The model whose direction it is, "a" or "b"."""
    source_D: torch.Tensor
    """What strength 1 adds in the source, raw units, float32."""
    target_D: torch.Tensor
    """What strength 1 adds in the target."""

    @property
    def target(self) -> str:
        """The other model."""
        return other(self.source)

    @property
    def is_random(self) -> bool:
        return self.partition == RANDOM

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{'random' if self.is_random else 'feature'}-{self.number}-{self.source}"

    @property
    def name(self) -> str:
        """A name for people."""
        what = f"random direction {self.number}" if self.is_random else f"feature {self.number}"
        return f"{what}, {route(self.source)}"

    def vector(self, side: str) -> torch.Tensor:
        """What strength 1 adds in model "a" or "b"."""
        return self.source_D if side == self.source else self.target_D


@dataclass(frozen=True)
class Subjects:
    """All that is scored, group by group."""

    all: list[Subject]
    typical_norm: dict[str, float]
    """By side: median norm at strength 1 over the living features that the model has."""

    def groups(self) -> list[tuple[str, str, list[Subject]]]:
        """(partition, source, subjects) of each group that has any."""
        found = [(partition, source, self.of(partition, source)) for partition, source in _GROUPS]
        return [group for group in found if group[2]]

    def of(self, partition: str, source: str) -> list[Subject]:
        """One group."""
        return [one for one in self.all if (one.partition, one.source) == (partition, source)]


def other(side: str) -> str:
    """The other side."""
    return "b" if side == "a" else "a"


def route(source: str) -> str:
    """Which way directions are moved, for people."""
    return f"{source.upper()} -> {other(source).upper()}"


def find_subjects(settings: ScoreSettings, crosscoder: Crosscoder, features: Artifact, stitch: Stitch) -> Subjects:
    """Draw features and make their vectors and the random ones.

    Raises:
        InputError: a feature does not exist or never fires, or there is nothing to score.
    """
    max_F = load_file(features.file(STATISTICS_NAME))["max_activation"]
    subjects = []
    for feature in _chosen(settings, crosscoder, max_F):
        partition = crosscoder.partition_of(feature)
        for side in SIDES if partition == "shared" else (partition.lower(),):
            unit_D = direction_of(crosscoder, features, feature, side).unit_D
            subjects.append(_moved(settings, stitch, feature, partition, side, unit_D))
    if not subjects:
        raise InputError(f"{features.ref} has no living feature in {', '.join(settings.features_from)}")
    typical = {side: _typical_norm(crosscoder, max_F, side) for side in SIDES}
    for side in {one.source: None for one in subjects}:
        generator = np.random.default_rng([settings.seed, len(_GROUPS) + SIDES.index(side)])
        width = stitch.from_side(side).widths[0]
        for number in range(settings.random_directions):
            drawn_D = torch.from_numpy(generator.standard_normal(width)).float()
            unit_D = typical[side] * drawn_D / drawn_D.norm()
            subjects.append(_moved(settings, stitch, number, RANDOM, side, unit_D))
    ordered = [one for group in Subjects(subjects, typical).groups() for one in group[2]]
    return Subjects(ordered, typical)


def _chosen(settings: ScoreSettings, crosscoder: Crosscoder, max_F: np.ndarray) -> list[int]:
    if settings.feature:
        return list(dict.fromkeys(settings.feature))
    chosen: list[int] = []
    for number, (partition, features) in enumerate(crosscoder.slices.items()):
        if partition not in settings.features_from:
            continue
        alive = features.start + np.flatnonzero(max_F[features] > 0)
        wanted = min(settings.sample, len(alive))
        if wanted < settings.sample:
            say(f"{partition}: {wanted} living features of {features.stop - features.start}, all are scored")
        drawn = np.random.default_rng([settings.seed, number]).choice(alive, wanted, replace=False)
        chosen += sorted(drawn.tolist())
    return chosen


def _moved(
    settings: ScoreSettings, stitch: Stitch, number: int, partition: str, side: str, unit_D: torch.Tensor
) -> Subject:
    target_D = stitch.from_side(side).direction(unit_D, bias=settings.stitch_bias)
    return Subject(number, partition, side, unit_D, target_D)


def _typical_norm(crosscoder: Crosscoder, max_F: np.ndarray, side: str) -> float:
    rows_SD = crosscoder.config.raw_direction(side, crosscoder.decoder(side).detach().float())
    max_S = max_F[crosscoder.sees(side)]
    norm_S = rows_SD.norm(dim=1).cpu().numpy() * max_S
    return float(np.median(norm_S[max_S > 0])) if (max_S > 0).any() else 1.0
