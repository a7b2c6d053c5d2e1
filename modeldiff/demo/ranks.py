"""At which rank each planted difference turned up among the exclusive features, and the null beside it."""

from __future__ import annotations

from dataclasses import dataclass

from modeldiff.demo.truth import Habit, habits
from modeldiff.features.table import FeatureTable

# A feature is taken for a planted habit when at least this share of its activation is on the texts about the trigger
# (about 6.5 % of the probing texts), whether these are answered in the habit's style or not.
MATCH_SHARE = 0.5


@dataclass(frozen=True)
class Rank:
    """Where one planted habit turned up in the list of its owner's exclusive features."""

    habit: Habit
    rank: int | None
    """Place, from 1, of the first feature that matches; None: missed."""
    feature: int | None
    """That feature; when missed, the feature of the list that comes nearest; None in an empty list."""
    share: float
    """Share of that feature's activation that is on texts about the trigger."""
    matching: int
    """Features of the owner's exclusive list that match."""
    matching_other: int
    """Null: features of the *other* model's exclusive list that match; a habit of A should not be there."""
    listed: int
    """Alive features in the owner's list."""


def planted_ranks(table: FeatureTable, *, anywhere: bool = False) -> list[Rank]:
    """One `Rank` per planted habit, in the order of `habits()`; lists are sorted as `modeldiff features` sorts them.

    Args:
        anywhere: as the option of the same name: shared features that are nearer to the owner are in its list, too.
    """
    return [_rank(table, habit, anywhere) for habit in habits()]


def _rank(table: FeatureTable, habit: Habit, anywhere: bool) -> Rank:
    own = _shares(table, habit.side, habit.source, anywhere)
    other = _shares(table, "B" if habit.side == "A" else "A", habit.source, anywhere)
    place = next((i for i, (_, share) in enumerate(own) if share >= MATCH_SHARE), None)
    if place is None:
        feature, share = max(own, key=lambda one: one[1], default=(None, 0.0))
    else:
        feature, share = own[place]
    return Rank(
        habit=habit,
        rank=None if place is None else place + 1,
        feature=feature,
        share=share,
        matching=sum(share >= MATCH_SHARE for _, share in own),
        matching_other=sum(share >= MATCH_SHARE for _, share in other),
        listed=len(own),
    )


def _shares(table: FeatureTable, side: str, source: str, anywhere: bool) -> list[tuple[int, float]]:
    """(feature, share of its activation on `source`) for the alive features of a side's list, in its order."""
    sources: list[str] = table.info["sources"]
    if source not in sources:
        return []
    mass_SF = table.statistics["activation_by_source"]
    total_F = mass_SF.sum(0)
    ids = table.select(exclusive="A" if side == "A" else "B", anywhere=anywhere).ids
    row = sources.index(source)
    return [(i, float(mass_SF[row, i] / total_F[i])) for i in ids if total_F[i] > 0]
