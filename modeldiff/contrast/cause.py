"""Is a feature the cause of a difference, or only the context in which it shows?

At held-out places both models go on again: as they are, with the feature removed, and with a random direction of the
same size in its place; elsewhere as they are, with the feature added, and with a random direction added. How often the
owner of the listed words says any of them then, as a share of the gap to the other model, tells how much of the
difference the feature carries (cause_plan.py says how it is removed and added). One meaning is often spread over
several features, of which one alone moves little: those that hold at much the same places are also removed together.

All variants of a place are drawn with the same random numbers: an edit that does nothing changes no word.

Legend: K places of an entry, P planned places, D width of a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.contrast.cause_plan import CauseOf, CausePlan, PlannedPlace, Pushed, alike, plan_causes
from modeldiff.contrast.statistics import Gap, gap_of
from modeldiff.contrast.words import whole_words, words_of
from modeldiff.controls import random_directions
from modeldiff.lm.edit import Shown, add_along, take_off
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.sides import OTHER, SIDES

__all__ = [
    "Cause",
    "CauseOf",
    "CausePlan",
    "Together",
    "alike",
    "causes_of",
    "generate_variants",
    "plan_causes",
]

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]

# Places continued at once, by kind of device. It decides the random numbers.
_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}
# What is sampled where the feature is removed, and where it is added, in this order.
REMOVED, ADDED = ("unchanged", "removed", "removed_random"), ("elsewhere", "added", "added_random")
TOGETHER = ("removed_together", "removed_together_random")
# A gap of which removal closes less than this is shown not to hang on the feature.
_MOST_OF = 0.5


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its 95 % confidence interval over documents."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, gap: Gap) -> Self:
        return cls(float(gap.value), float(gap.low()), float(gap.high()))


@dataclass(frozen=True)
class Together:
    """What happens when the features that hold at much the same places are removed from the owner all at once."""

    features: list[int]
    closed: Interval | None
    """Share of the gap that closes; None: at these places no gap is shown."""
    closed_random: Interval | None
    """The same with their activations times random directions."""
    beyond_random: Interval
    """Rate of the words in the owner: random directions removed, minus the features removed."""
    verdict: Literal["cause", "context"]
    settled: bool


@dataclass(frozen=True)
class Cause:
    """What happens to a difference when a feature is removed and added."""

    feature: int
    side: str
    """The owner: the model whose words show the difference, "a" or "b"."""
    words: list[str]
    places: int
    """At which the feature is removed."""
    places_elsewhere: int
    """At which it is added."""
    strength: float
    """The activation that is added."""
    by: dict[str, str | None]
    """By side: decoder or stitch, what its direction is from; None: that model has none."""
    rates: dict[str, dict[str, float | None]]
    """By side, and by what was done (REMOVED, TOGETHER and ADDED): how often the model says any of the words."""
    gap: Interval
    """How much more often the owner says any of them than the other model, both as they are."""
    closed_removed: Interval | None
    """Share of the gap that closes when the feature is removed from the owner; None: no direction, or no gap is shown
    at these places."""
    closed_random: Interval | None
    """The same for random directions."""
    closed_added: Interval | None
    """Share of the gap by which the other model says the words more, elsewhere, when the feature is added to it."""
    removed_beyond_random: Interval | None
    """Rate of the words in the owner: a random direction removed, minus the feature removed."""
    added_beyond_random: Interval | None
    """Rate of the words in the owner, elsewhere: the feature added, minus a random direction added."""
    verdict: Literal["cause", "context"] | None
    """cause: one of the last two is above 0; context: neither is; None: the owner has no direction for the feature."""
    settled: bool
    """False for a context where removal might still close half of the gap: too few places to say that nothing moves."""
    together: Together | None
    """None: the owner has none of the features, or none were asked for."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, words and lists."""
        return dataclasses.asdict(self)


def generate_variants(
    lm: LanguageModel, side: str, plan: CausePlan, note: Callable[[int], None] = lambda _: None
) -> list[list[str]]:
    """For each planned place what the model says as it is, with the feature removed or added, and with a random
    direction instead; then, where they are asked for and it is removed, with the features that go together removed, and
    with random directions instead of theirs. The first alone where the model has no direction for the feature.

    Args:
        note: told how many places are done, batch by batch.
    """
    made: list[list[str]] = [[] for _ in plan.places]
    length = [len(one.edit[side].ids) for one in plan.places]
    size = _BATCH.get(lm.device.type, 32)
    done = 0
    for removes in (True, False):
        order = [i for i in np.argsort(length, kind="stable").tolist() if plan.places[i].removes == removes]
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            _sample(lm, side, plan, batch, (plan.seed * 2 + SIDES.index(side)) * 1_000_003 + done, made)
            done += len(batch)
            note(len(batch))
    return made


def _sample(lm: LanguageModel, side: str, plan: CausePlan, batch: list[int], seed: int, made: list[list[str]]) -> None:
    """All variants of some places, appended to what was made of them."""
    ids = [plan.places[i].edit[side].ids for i in batch]
    for edited, which in _edited(lm, side, plan, batch):
        with edited:
            texts = continue_tokens(
                lm, ids, max_new_tokens=plan.tokens, temperature=1.0, seed=seed, batch_size=len(batch)
            )
        for i, wanted, one in zip(batch, which, texts, strict=True):
            if wanted:
                made[i].append(one.text)


def _edited(
    lm: LanguageModel, side: str, plan: CausePlan, batch: list[int]
) -> Iterator[tuple[AbstractContextManager[None], list[bool]]]:
    """The model as it is and with each edit, and at which of the places the edit means something."""
    pushed = [plan.pushed[plan.places[i].entry].get(side) for i in batch]
    seeds = [_seed_of(plan, side, i) for i in batch]
    yield nullcontext(), [True] * len(batch)
    if any(pushed):
        which = [one is not None for one in pushed]
        edits = [plan.places[i].edit[side] for i in batch]
        after_B = torch.tensor([edit.after for edit in edits], dtype=torch.float32)
        for directions_BD in _own_and_random(pushed, seeds, lm.width):
            yield add_along(lm, plan.layer[side], directions_BD, [edit.along_T for edit in edits], after_B), which
    if plan.places[batch[0]].removes:
        groups = [one.together if one else None for one in pushed]
        for features in _groups_and_random(groups, seeds, lm.width):
            yield take_off(lm, plan.layer[side], features), [group is not None for group in groups]


def _own_and_random(pushed: list[Pushed | None], seeds: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, D) what is added at each place, zeros where nothing is, and the same in random directions."""
    own_BD = torch.stack([one.direction_D if one else torch.zeros(width) for one in pushed])
    rows = zip(own_BD, seeds, strict=True)
    return own_BD, torch.cat([random_directions(1, own_D, seed) for own_D, seed in rows])


def _groups_and_random(groups: list[Shown | None], seeds: list[int], width: int) -> list[list[Shown]]:
    """What is removed together at each place, and the same in random directions; none where no place has a group."""
    if not any(groups):
        return []
    shown = [group or _nothing(width) for group in groups]
    return [shown, [_random(one, seed) for one, seed in zip(shown, seeds, strict=True)]]


def _nothing(width: int) -> Shown:
    return Shown(torch.zeros(0, width), torch.zeros(0), torch.zeros(0), torch.zeros(0, width))


def _random(shown: Shown, seed: int) -> Shown:
    """The same activations with random directions of the same norms."""
    rows = enumerate(shown.decoder_GD)
    drawn = [random_directions(1, row_D, seed * 1_009 + g) for g, row_D in rows]
    return dataclasses.replace(shown, decoder_GD=torch.cat(drawn) if drawn else shown.decoder_GD)


def _seed_of(plan: CausePlan, side: str, number: int) -> int:
    """Of the random direction of a planned place: each has its own, so that none decides for all."""
    return (plan.seed * 2 + SIDES.index(side)) * 1_000_003 + 500_000 + number


def causes_of(plan: CausePlan, texts_a: list[list[str]], texts_b: list[list[str]]) -> list[Cause | None]:
    """The cause of each entry of a plan, from what both models said; None of those that were not measured."""
    found: list[Cause | None] = []
    for number in range(len(plan.entries)):
        mine = [i for i, one in enumerate(plan.places) if one.entry == number]
        texts = {side: [of_side[i] for i in mine] for side, of_side in (("a", texts_a), ("b", texts_b))}
        found.append(_cause(plan, number, [plan.places[i] for i in mine], texts) if mine else None)
    return found


def _cause(plan: CausePlan, number: int, places: list[PlannedPlace], texts: dict[str, list[list[str]]]) -> Cause:
    entry = plan.entries[number]
    assert entry.feature is not None
    owner, other = (entry.side, OTHER[entry.side])
    words = frozenset(entry.words[owner])
    said, documents = _said(plan.pushed[number], places, texts, words)
    own, gap_K = said[owner], said[owner]["unchanged"] - said[other]["unchanged"]
    gap = _mean(gap_K, documents[True])
    closed_removed = closed_random = closed_added = removed_beyond = added_beyond = together = None
    verdict: Literal["cause", "context"] | None = None
    settled = False
    if owner in plan.pushed[number]:
        closed_removed = _share(own["unchanged"] - own["removed"], gap_K, documents[True])
        closed_random = _share(own["unchanged"] - own["removed_random"], gap_K, documents[True])
        moved_K = own["removed_random"] - own["removed"]
        removed_beyond = Interval.of(_mean(moved_K, documents[True]))
        added_beyond = Interval.of(_mean(own["added"] - own["added_random"], documents[False]))
        verdict = "cause" if removed_beyond.low > 0 or added_beyond.low > 0 else "context"
        settled = verdict == "cause" or _mean(moved_K - _MOST_OF * gap_K, documents[True]).high() < 0
        if TOGETHER[0] in own:
            together = _together(list(plan.pushed[number][owner].features), own, gap_K, documents[True])
    if other in plan.pushed[number]:
        added = _mean(said[other]["added"] - said[other]["elsewhere"], documents[False])
        closed_added = _share_of_others(added, gap)
    return Cause(
        feature=entry.feature,
        side=owner,
        words=list(entry.words[owner]),
        places=len(documents[True]),
        places_elsewhere=len(documents[False]),
        strength=plan.strength[number],
        by={side: plan.pushed[number][side].by if side in plan.pushed[number] else None for side in SIDES},
        rates={side: {name: _rate(said[side].get(name)) for name in (*REMOVED, *TOGETHER, *ADDED)} for side in SIDES},
        gap=Interval.of(gap),
        closed_removed=closed_removed,
        closed_random=closed_random,
        closed_added=closed_added,
        removed_beyond_random=removed_beyond,
        added_beyond_random=added_beyond,
        verdict=verdict,
        settled=settled,
        together=together,
    )


def _said(
    pushed: Mapping[str, Pushed], places: list[PlannedPlace], texts: dict[str, list[list[str]]], words: frozenset[str]
) -> tuple[dict[str, dict[str, Floats]], dict[bool, Longs]]:
    """By side and variant, at which places a word is said; by whether the feature is removed there, their documents."""
    said: dict[str, dict[str, Floats]] = {side: {} for side in SIDES}
    documents = {}
    for names, removes in ((REMOVED, True), (ADDED, False)):
        at = [k for k, one in enumerate(places) if one.removes == removes]
        documents[removes] = np.array([places[k].document for k in at])
        for side in SIDES:
            for v, name in enumerate(_variants(names, removes, pushed.get(side))):
                said[side][name] = np.array([_says(texts[side][k][v], words, places[k].begins) for k in at], float)
    return said, documents


def _variants(names: tuple[str, ...], removes: bool, pushed: Pushed | None) -> tuple[str, ...]:
    """What `generate_variants` makes of a place, in order."""
    if pushed is None:
        return names[:1]
    return (*names, *TOGETHER) if removes and pushed.together else names


def _together(features: list[int], own: dict[str, Floats], gap_K: Floats, document_K: Longs) -> Together:
    moved_K = own[TOGETHER[1]] - own[TOGETHER[0]]
    beyond = Interval.of(_mean(moved_K, document_K))
    verdict: Literal["cause", "context"] = "cause" if beyond.low > 0 else "context"
    closed, closed_random = (_share(own["unchanged"] - own[name], gap_K, document_K) for name in TOGETHER)
    settled = verdict == "cause" or _mean(moved_K - _MOST_OF * gap_K, document_K).high() < 0
    return Together(features, closed, closed_random, beyond, verdict, settled)


def _says(text: str, words: frozenset[str], begins: bool) -> bool:
    return not words.isdisjoint(words_of(whole_words(text, begins=begins)))


def _rate(said_K: Floats | None) -> float | None:
    return None if said_K is None else float(said_K.mean())


def _mean(score_K: Floats, document_K: Longs) -> Gap:
    """The mean over places, documents being independent of each other."""
    return gap_of(score_K, np.ones(len(score_K), bool), document_K)


def _share(closed_K: Floats, gap_K: Floats, document_K: Longs) -> Interval | None:
    """Mean of what closes over the mean gap, at the same places. To first order, the error is that of the mean of what
    closes minus share times gap. None: the gap may be none, so that its shares are nothing."""
    gap = _mean(gap_K, document_K)
    if gap.low() <= 0:
        return None
    share = float(closed_K.mean()) / gap.value
    rest = _mean(closed_K - share * gap_K, document_K)
    return _interval_of_share(Gap(share, rest.error / gap.value, rest.freedom))


def _share_of_others(moved: Gap, gap: Gap) -> Interval | None:
    """The same for what was moved at other places."""
    if gap.low() <= 0:
        return None
    share = moved.value / gap.value
    error = float(np.hypot(moved.error, share * gap.error)) / gap.value
    return _interval_of_share(Gap(share, error, min(moved.freedom, gap.freedom)))


def _interval_of_share(share: Gap) -> Interval:
    """A share may be any number, unlike a difference of rates."""
    half = share.quantile() * share.error
    return Interval(share.value, share.value - half, share.value + half)
