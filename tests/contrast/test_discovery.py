"""What a contrast finds in worlds of known truth, and that it finds nothing where there is nothing."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from modeldiff.contrast import discovery
from modeldiff.contrast.discovery import Outcome, contrast
from modeldiff.contrast.settings import ContrastSettings
from tests.contrast.made_worlds import World, made_world


def found(world: World, seed: int = 0, *, worlds: int = 0, **changed: Any) -> Outcome:
    settings = ContrastSettings(**{"seed": seed, "least": 8, **changed})
    return contrast(world.contexts, world.said, world.document_P, settings, worlds=worlds)


def named(outcome: Outcome) -> set[str]:
    """Names of the verified contexts; everywhere is the empty one."""
    return {outcome.contexts.which[one.candidate.context].name for one in outcome.entries if one.verified}


def test_planted_differences_are_found_with_their_words() -> None:
    world = made_world(0, density=0.2, planted={3: {"a": 0.5}, 7: {"b": 0.5}})
    outcome = found(world, worlds=3)
    assert named(outcome) == {"3", "7"}
    assert (outcome.found, outcome.chance < 0.5) == (2, True)
    first, second = sorted(outcome.entries[:2], key=lambda one: one.candidate.context)
    assert (first.candidate.words["a"][0], second.candidate.words["b"][0]) == (3, 7)
    assert (first.side, second.side) == ("a", "b")
    assert first.effect.value == pytest.approx(0.5, abs=0.2)
    assert first.effect.low() > 0.05
    assert named(found(world, smallest=0.9)) == set()


def test_however_promising_none_is_verified_whose_own_p_value_is_above_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "rejected", lambda p_N, *_: np.ones(len(p_N), bool))
    world = made_world(4, density=0.2, planted={3: {"a": 0.5}, 7: {"b": 0.12}, 9: {"a": 0.1}})
    entries = found(world, smallest=0.05).entries
    assert {one.verified for one in entries} == {True, False}
    assert all(one.verified == (one.p <= 0.05) for one in entries)


def test_what_holds_everywhere_is_found_everywhere_alone() -> None:
    assert named(found(made_world(1, everywhere=0.3))) == {""}


def test_what_one_context_explains_is_not_everywhere() -> None:
    """In one context B says many words more, more than are listed: on average it says them more, too."""
    rng = np.random.default_rng(9)
    world = made_world(9, documents=800, density=0.2)
    on = world.contexts.on(4)
    said = world.said.by_side["b"].toarray()
    for place in np.flatnonzero(on & (rng.random(len(on)) < 0.8)):
        said[place, rng.integers(10, 30, 5)] = 1
    world.said = type(world.said)(world.said.names, {**world.said.by_draw, "b": [sparse.csr_matrix(said)]})
    outcome = found(world, smallest=0.02)
    assert [outcome.contexts.which[one.candidate.context].name for one in outcome.entries] == ["3"]


def test_where_a_habit_is_missing_the_other_model_does_nothing_new() -> None:
    """B says a word everywhere but in one kind of text, where both say it because of the text: B's habit is found, and
    no entry says that A says the word there."""
    rng = np.random.default_rng(8)
    world = made_world(8, documents=400, density=0.2)
    on = world.contexts.on(4)
    said = {side: one.toarray() for side, one in world.said.by_side.items()}
    said["a"][:, 3] = rng.random(len(on)) < np.where(on, 0.4, 0.05)
    said["b"][:, 3] = rng.random(len(on)) < np.where(on, 0.4, 0.5)
    world.said = type(world.said)(world.said.names, {side: [sparse.csr_matrix(one)] for side, one in said.items()})
    entries = [one for one in found(world).entries if one.verified]
    assert entries
    assert all(one.side == "b" for one in entries)
    assert 4 not in {one.candidate.context for one in entries}


def test_contexts_that_say_the_same_become_one_entry() -> None:
    world = made_world(3, density=0.2, planted={3: {"a": 0.5}})
    on = world.contexts.on_CP.tolil()
    on[10] = on[4]  # row 0 is everywhere: context "9" now holds where "3" does
    world.contexts = type(world.contexts)(world.contexts.which, on.tocsr())
    (entry,) = [one for one in found(world).entries if one.verified]
    assert [world.contexts.which[c].name for c in (entry.candidate.context, *entry.candidate.same)] == ["3", "9"]


@pytest.mark.parametrize(
    "world",
    [
        pytest.param({}, id="independent"),
        pytest.param({"together": 0.8, "per_document": 4, "documents": 150}, id="places of a document alike"),
        pytest.param({"unequal": 0.25, "density": 0.05}, id="both models say more there"),
        pytest.param({"repeats": 30}, id="one document repeats itself"),
        pytest.param({"words": 12, "contexts": 60}, id="few words"),
    ],
)
def test_worlds_without_a_difference_give_nothing_more_often_than_stated(world: dict[str, Any]) -> None:
    """At the stated rate of 5 % for any effect above zero; tests/benchmarks/contrast_null.py does it 500 times."""
    runs = 12
    wrong = sum(found(made_world(100 + seed, **world), seed, smallest=0.0).found > 0 for seed in range(runs))
    assert wrong <= 2
