"""Which places are continued: how many, how many drawn evenly, and the others where the models differ."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from modeldiff.contrast.documents import Document, Place, Reading, choose_places


def plain(number: int, candidates: int) -> Document:
    reading = [Reading(list(range(99)), list(range(5, 5 + candidates)))]
    return Document("text", "made", number, list(range(candidates)), {"a": reading, "b": reading})


def given(number: int, places: int) -> Document:
    readings = [Reading(list(range(9)), [9])] * places
    return Document("text", "made", number, list(range(places)), {"a": readings, "b": readings}, given=True)


def chosen(documents: list[Document], divergence: list[float] | None = None, **changed: Any) -> list[Place]:
    values = divergence or [0.5] * sum(len(document.ends) for document in documents)
    return choose_places(
        documents, np.array(values, np.float32), **{"places": len(documents), "uniform": 0.5, "seed": 0, **changed}
    )


@pytest.mark.parametrize(("places", "each"), [(10, 1), (14, 1), (16, 2), (30, 3), (1, 1), (999, 8)])
def test_every_document_gives_as_many_places_as_any_other(places: int, each: int) -> None:
    found = chosen([plain(i, 8) for i in range(10)], places=places)
    assert Counter(place.document for place in found) == dict.fromkeys(range(10), each)


def test_a_document_gives_no_place_twice_and_no_more_than_it_has() -> None:
    found = chosen([plain(0, 3), plain(1, 8)], places=12)
    assert [(p.document, p.end) for p in found if p.document == 0] == [(0, 0), (0, 1), (0, 2)]
    assert len({(p.document, p.end) for p in found}) == len(found) == 9


def test_places_are_in_order_with_the_divergence_of_their_candidates() -> None:
    documents = [plain(i, 4) for i in range(20)]
    divergence = (np.arange(80) / 100).tolist()
    found = chosen(documents, divergence, places=40)
    assert [(p.document, p.end) for p in found] == sorted((p.document, p.end) for p in found)
    np.testing.assert_allclose([p.divergence for p in found], [divergence[4 * p.document + p.end] for p in found])


@pytest.mark.parametrize(("uniform", "even"), [(0.0, 0), (0.25, 50), (0.5, 100), (1.0, 200)])
def test_the_share_that_is_drawn_evenly_is_kept_over_the_documents(uniform: float, even: int) -> None:
    for each in (1, 2):
        found = chosen([plain(i, 8) for i in range(200)], places=200 * each, uniform=uniform)
        assert Counter(place.drawn for place in found)["uniform"] == even * each


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_places_are_drawn_evenly_or_in_proportion_to_the_square_of_the_divergence(uniform: float) -> None:
    documents, divergence = [plain(i, 4) for i in range(3000)], [0.1, 0.2, 0.3, 0.4]
    found = chosen(documents, divergence * 3000, uniform=uniform)
    counts = Counter(place.end for place in found)
    weights = np.ones(4) if uniform else np.square(divergence)
    assert stats.chisquare([counts[i] for i in range(4)], 3000 * weights / weights.sum()).pvalue > 1e-3
    assert {place.drawn for place in found} == {"uniform" if uniform else "divergence"}
    # Models that never differ have places too.
    assert len(chosen(documents[:1], [0.0] * 4, places=3, uniform=uniform)) == 3


def test_ends_of_prompts_and_of_users_messages_are_given() -> None:
    found = chosen([given(0, 1), given(1, 3), plain(2, 8)], places=9)
    assert [(p.document, p.end, p.drawn) for p in found[:4]] == [
        (0, 0, "given"), (1, 0, "given"), (1, 1, "given"), (1, 2, "given"),
    ]  # fmt: skip
    assert "given" not in {p.drawn for p in found[4:]}


def test_the_same_seed_draws_the_same_places_whatever_documents_stand_around() -> None:
    documents = [plain(i, 8) for i in range(40)]
    assert chosen(documents) == chosen(documents)
    assert chosen(documents) != chosen(documents, seed=1)
    of_one = [p.end for p in chosen(documents, uniform=0.0) if p.document == 7]
    assert [p.end for p in chosen(documents[7:8], uniform=0.0)] == of_one
