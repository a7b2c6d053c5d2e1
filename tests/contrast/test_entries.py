"""Entries of the list: rates, sources, words and texts by hand on ten places."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from modeldiff.contrast.candidates import Candidate
from modeldiff.contrast.contexts import Context, Contexts
from modeldiff.contrast.discovery import Outcome, Verified
from modeldiff.contrast.entries import SHOWN_CHARS, entry_json, feature_of
from modeldiff.contrast.statistics import gap_of
from modeldiff.contrast.words import Said

# Places 0 to 4 discover, 5 to 9 verify. The context holds at 0, 1, 5, 6, 7.
FIRST = np.arange(10) < 5
HOLDS = [0, 1, 5, 6, 7]
ON = np.isin(np.arange(10), HOLDS)
SAYS = {
    "a": {"red": [1, 1, 0, 0, 0, 1, 1, 0, 1, 0], "hot": [1, 1, 0, 0, 0, 0, 0, 0, 0, 1], "ice": [0] * 10},
    "b": {"red": [0] * 10, "hot": [0] * 10, "ice": [1, 1, 0, 0, 0, 0, 1, 1, 0, 0]},
}
NAMES = ["hot", "ice", "red"]


def contexts(*rows: tuple[str, str, list[int]]) -> Contexts:
    on_CP = np.array([[i in at for i in range(10)] for _, _, at in rows], np.float32).reshape(len(rows), 10)
    return Contexts([Context(kind, name) for kind, name, _ in rows], sparse.csr_matrix(on_CP))


def made(which: Contexts, context: int = 0, same: tuple[int, ...] = ()) -> tuple[Verified, Outcome]:
    candidate = Candidate(context, 9.0, [("a", 2), ("b", 1)], {"a": [2, 0], "b": [1]}, 0.1, list(same))
    document_P = np.arange(10) // 2
    score = np.array(SAYS["a"]["red"], float)
    gaps = {"a": gap_of(score[~FIRST], ON[~FIRST], document_P[~FIRST])}
    one = Verified(candidate, gaps, 0.01, True)
    return one, Outcome(which, FIRST, [one] * 3, 0.0)


def entry(which: Contexts | None = None, same: tuple[int, ...] = ()) -> dict[str, Any]:
    """The entry of the first context, of rank 3."""
    _, outcome = made(which or contexts(("word", "oak", HOLDS)), same=same)
    columns = {side: np.array([of[name] for name in NAMES], np.float32) for side, of in SAYS.items()}
    said = Said(NAMES, {side: [sparse.csr_matrix(one.T)] for side, one in columns.items()})
    documents = [SimpleNamespace(source=source) for source in ("web", "web", "code", "web", "news")]
    text = "x" * 200
    places = [SimpleNamespace(document=i // 2, said={"a": [f"A{i}", "?"], "b": [f"B{i}", "?"]}) for i in range(10)]
    continuations: Any = SimpleNamespace(documents=documents, places=places, before=lambda i: f"{text}{i}")
    before = contexts(("word", "rare", [5]), ("word", "near", [0, 1, 5, 6]), ("word", "off", [2, 3, 4]))
    return entry_json(3, outcome, continuations, said, before, 0)


def test_rates_are_of_the_places_that_verify() -> None:
    found = entry()
    # Here are the places 5, 6 and 7, elsewhere 8 and 9.
    two_thirds, half = pytest.approx(2 / 3), pytest.approx(1 / 2)
    assert found["a_says"] == [{"word": "red", "a": two_thirds, "a_elsewhere": half, "b": 0.0, "b_elsewhere": 0.0}]
    assert found["b_says"] == [{"word": "ice", "a": 0.0, "a_elsewhere": 0.0, "b": two_thirds, "b_elsewhere": 0.0}]
    # Any of "red" and "hot", the words of the side with the larger effect.
    assert found["any_word"] == {"a": two_thirds, "b": 0.0, "a_elsewhere": pytest.approx(1.0), "b_elsewhere": 0.0}
    assert found["side"] == "A"


def test_an_entry_says_where_it_holds_and_how_large_the_effect_is() -> None:
    found = entry()
    # A says "hot" here in the discovering half alone.
    assert "hot" not in [row["word"] for row in found["a_says"]]
    assert found["context"] == {"kind": "word", "name": "oak"}
    assert (found["rank"], found["places"], found["documents"]) == (3, 5, 3)
    # Places 0, 1 are of a web text, 5 of code, 6, 7 of web.
    assert list(found["sources"].items()) == [("web", 0.8), ("code", 0.2)]
    one, _ = made(contexts(("word", "oak", HOLDS)))
    assert (found["effect"], found["low"], found["high"]) == (one.effect.value, one.effect.low(), one.effect.high())
    assert found["effect"] == pytest.approx(2 / 3 - 1 / 2)
    assert (found["p"], found["verified"]) == (0.01, True)
    assert found["words_there"] == ["near", "rare"]
    feature = entry(contexts(("feature", "5", HOLDS), ("feature", "8", HOLDS)), same=(1,))
    assert (feature["feature"], feature["also"]) == (5, [{"kind": "feature", "id": 8}])
    everywhere = entry(contexts(("everywhere", "", list(range(10)))))
    assert everywhere["a_says"][0]["a"] == pytest.approx(3 / 5)
    assert {everywhere["a_says"][0][key] for key in ("a_elsewhere", "b_elsewhere")} == {0.0}
    assert (everywhere["feature"], everywhere["words_there"]) == (None, [])


def test_texts_are_of_verifying_places_with_what_both_said_first() -> None:
    texts = entry()["texts"]
    assert len(texts) == 3
    numbers = [int(one["before"][-1]) for one in texts]
    assert set(numbers) == {5, 6, 7}
    for number, one in zip(numbers, texts, strict=True):
        assert one == {"before": ("x" * 200 + str(number))[-SHOWN_CHARS:], "a": f"A{number}", "b": f"B{number}"}
    assert entry()["texts"] == texts


@pytest.mark.parametrize(
    ("others", "same", "feature"),
    [
        ([], (), None),
        ([("feature", "7", [9])], (), None),  # holds elsewhere
        ([("feature", "7", [9])], (1,), 7),  # but says the same
        ([("feature", "7", [0, 1]), ("feature", "8", [0, 1, 5, 6])], (), 8),  # holds at most of the same places
        ([("feature", "7", [0])], (), 7),  # a fifth is enough
        ([("word", "7", HOLDS)], (1,), None),
    ],
)
def test_the_feature_that_an_entry_is_about(
    others: list[tuple[str, str, list[int]]], same: tuple[int, ...], feature: int | None
) -> None:
    one, outcome = made(contexts(("word", "oak", HOLDS), *others), same=same)
    assert feature_of(outcome, one) == feature
