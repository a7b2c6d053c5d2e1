"""Contexts: where each of them holds, and which are compared."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from modeldiff.contrast.contexts import WORDS_BEFORE, Context, Contexts, everywhere, joined, sources, words


def places_of(contexts: Contexts) -> dict[tuple[str, str], list[int]]:
    return {
        (one.kind, one.name): np.flatnonzero(row).tolist()
        for one, row in zip(contexts.which, contexts.on_CP.toarray(), strict=True)
    }


def test_a_source_holds_at_the_places_of_its_texts() -> None:
    found = sources(["web", "code", "web", "web", "news"])
    assert places_of(found) == {("source", "code"): [1], ("source", "news"): [4], ("source", "web"): [0, 2, 3]}


@pytest.mark.parametrize("labels", [["web", "web"], []])
def test_a_single_source_tells_nothing(labels: list[str]) -> None:
    found = sources(labels)
    assert (len(found), found.on_CP.shape) == (0, (0, len(labels)))


def test_everywhere_always_holds() -> None:
    assert places_of(everywhere(3)) == {("everywhere", ""): [0, 1, 2]}


def test_a_word_holds_where_it_stands_before_the_place_however_often() -> None:
    found = words(["The cat, the cat", "a CAT", "a dog", ""], least=1)
    assert places_of(found) == {
        ("word", "a"): [1, 2], ("word", "cat"): [0, 1], ("word", "dog"): [2], ("word", "the"): [0],
    }  # fmt: skip
    assert set(found.on_CP.data) == {1.0}


def test_only_the_last_64_words_before_a_place_count() -> None:
    assert WORDS_BEFORE == 64
    just = "inside " + "x " * 63
    over = "outside " + "x " * 64
    assert places_of(words([just, over], least=1)) == {("word", "inside"): [0], ("word", "x"): [0, 1]}


def test_a_word_must_stand_before_enough_places() -> None:
    assert places_of(words(["a b", "a", "a b"], least=3)) == {("word", "a"): [0, 1, 2]}
    assert words(["a b", "a"], least=3).on_CP.shape == (0, 2)
    assert words(["", ""], least=1).on_CP.shape == (0, 2)


def made(rows: list[list[int]], kinds: list[str] | None = None) -> Contexts:
    which = [Context(kind, str(c)) for c, kind in enumerate(kinds or ["word"] * len(rows))]
    return Contexts(which, sparse.csr_matrix(np.array(rows, np.float32)))


def test_contexts_that_are_compared_hold_often_enough_in_either_half_but_not_too_often() -> None:
    first = np.array([True] * 4 + [False] * 4)
    contexts = made(
        [
            [1, 1, 0, 0, 1, 1, 0, 0],  # half of either: the most
            [1, 0, 0, 0, 1, 1, 0, 0],  # once in the first half
            [1, 1, 0, 0, 0, 0, 0, 1],  # once in the second
            [1, 1, 0, 0, 1, 1, 1, 0],  # too often in the second
            [1, 1, 1, 1, 1, 1, 1, 1],
        ]
    )
    kept = contexts.often_enough(first, least=2, most=0.5)
    assert places_of(kept) == {("word", "0"): [0, 1, 4, 5]}
    assert [one.name for one in contexts.often_enough(first, least=1, most=0.5).which] == ["0", "1", "2"]
    assert [one.name for one in contexts.often_enough(first, least=2, most=1).which] == ["0", "3", "4"]


def test_everywhere_is_compared_whatever_is_too_often() -> None:
    contexts = joined([everywhere(4), made([[1, 1, 1, 1]], ["source"])])
    kept = contexts.often_enough(np.array([True, True, False, False]), least=3, most=0.1)
    assert places_of(kept) == {("everywhere", ""): [0, 1, 2, 3]}


def test_joined_keeps_the_order_of_the_parts() -> None:
    together = joined([everywhere(2), sources(["a", "a"]), sources(["b", "a"]), words(["x", "x"], least=1)])
    assert places_of(together) == {
        ("everywhere", ""): [0, 1], ("source", "a"): [1], ("source", "b"): [0], ("word", "x"): [0, 1],
    }  # fmt: skip
    assert [one.kind for one in together.which] == ["everywhere", "source", "source", "word"]
