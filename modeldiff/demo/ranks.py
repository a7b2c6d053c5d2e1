"""At which rank of the list of differences each planted one stands, and which entries are about none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.stored import read_contrast, read_places
from modeldiff.demo.truth import Habit, habits
from modeldiff.workspace import Artifact, Workspace

# An entry is about a planted difference when the text before so many of its places names the trigger (it does before
# about one place in fourteen).
MATCH_SHARE = 0.5


@dataclass(frozen=True)
class Rank:
    """Where one planted difference stands."""

    habit: Habit
    rank: int | None
    """Place in the list, from 1, of the first entry about it; None: missed."""
    feature: int | None
    """That entry's feature, if it has one."""
    share: float
    """Share of that entry's places before which the trigger is named."""


@dataclass(frozen=True)
class Truth:
    """The list held against the truth."""

    ranks: list[Rank]
    other: list[int]
    """Ranks of the verified entries that are about none of the planted differences."""
    listed: int


def held_against_truth(contrast: Artifact, workspace: Workspace) -> Truth:
    """The planted differences in a contrast of the bundled pair.

    Raises:
        InputError: its continuations are not in the workspace any more.
    """
    continuations = Continuations(workspace.source_of(contrast, "continuations"))
    before = [continuations.before(i).lower() for i in range(len(continuations.places))]
    entries = read_contrast(contrast)["differences"]
    places = read_places(contrast)[: len(entries)]
    return truth_of([[before[p] for p in mine] for mine in places], [one["feature"] for one in entries])


def truth_of(before: Sequence[Sequence[str]], features: Sequence[int | None]) -> Truth:
    """As `held_against_truth`, from the lower-case texts before the places of each entry, and its feature."""
    named = {
        habit.id: [sum(habit.trigger.lower() in text for text in mine) / max(1, len(mine)) for mine in before]
        for habit in habits()
    }
    ranks = []
    for habit in habits():
        place = next((i for i, share in enumerate(named[habit.id]) if share >= MATCH_SHARE), None)
        if place is None:
            ranks.append(Rank(habit, None, None, max(named[habit.id], default=0.0)))
        else:
            ranks.append(Rank(habit, place + 1, features[place], named[habit.id][place]))
    other = [i + 1 for i in range(len(before)) if all(shares[i] < MATCH_SHARE for shares in named.values())]
    return Truth(ranks, other, len(before))
