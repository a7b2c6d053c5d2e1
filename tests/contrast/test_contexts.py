"""Contexts: where each of them holds, which are compared, and what features are at the pairs before a place."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from modeldiff.contrast.contexts import (
    Context,
    Contexts,
    PairsBefore,
    activations,
    everywhere,
    feature_contexts,
    joined,
    pairs_before,
    read_rows,
    sources,
    words,
)
from modeldiff.contrast.continuations import Continuations
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import residual_after
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader
from tests.contrast.conftest import make_texts
from tests.contrast.made_continuations import opened
from tests.crosscoder.made import random_crosscoder


def places_of(contexts: Contexts) -> dict[tuple[str, str], list[int]]:
    return {
        (one.kind, one.name): np.flatnonzero(row).tolist()
        for one, row in zip(contexts.which, contexts.on_CP.toarray(), strict=True)
    }


def test_a_source_holds_at_the_places_of_its_texts() -> None:
    found = sources(["web", "code", "web", "web", "news"])
    assert places_of(found) == {("source", "code"): [1], ("source", "news"): [4], ("source", "web"): [0, 2, 3]}
    for labels in (["web", "web"], []):  # a single source tells nothing
        assert sources(labels).on_CP.shape == (0, len(labels))


def test_a_word_holds_where_it_stands_before_the_place_however_often() -> None:
    found = words(["The cat, the cat", "a CAT", "a dog", ""], least=1)
    assert places_of(found) == {
        ("word", "a"): [1, 2], ("word", "cat"): [0, 1], ("word", "dog"): [2], ("word", "the"): [0],
    }  # fmt: skip
    assert set(found.on_CP.data) == {1.0}
    assert places_of(words(["a b", "a", "a b"], least=3)) == {("word", "a"): [0, 1, 2]}
    assert words(["a b", "a"], least=3).on_CP.shape == (0, 2)
    # Only the last 64 words count.
    late = ["inside " + "x " * 63, "outside " + "x " * 64]
    assert places_of(words(late, least=1)) == {("word", "inside"): [0], ("word", "x"): [0, 1]}


def test_contexts_that_are_compared_hold_often_enough_in_either_half_but_not_too_often() -> None:
    first = np.array([True] * 4 + [False] * 4)
    rows = [
        [1, 1, 0, 0, 1, 1, 0, 0],  # half of either: the most
        [1, 0, 0, 0, 1, 1, 0, 0],  # once in the first half
        [1, 1, 0, 0, 0, 0, 0, 1],  # once in the second
        [1, 1, 0, 0, 1, 1, 1, 0],  # too often in the second
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    which = [Context("word", str(c)) for c in range(len(rows))]
    contexts = joined([everywhere(8), Contexts(which, sparse.csr_matrix(np.array(rows, np.float32)))])
    found = contexts.often_enough(first, least=2, most=0.5)
    assert places_of(found) == {("everywhere", ""): list(range(8)), ("word", "0"): [0, 1, 4, 5]}
    assert [one.name for one in contexts.often_enough(first, least=1, most=0.5).which] == ["", "0", "1", "2"]


SHORT = "one two, three"
LONG = " ".join(f"w{i}" for i in range(40))
FAR = {"a": 10_000, "b": 10_000}


def before(
    texts: list[str], places: list[tuple[int, int]], readers: dict[str, Reader], context: dict[str, int] = FAR
) -> PairsBefore:
    return pairs_before(opened([Record("made", text) for text in texts], places), readers, context)


def texts_before(pairs: PairsBefore, texts: list[str], place: int) -> list[str]:
    """The words that the pairs before a place end."""
    at = range(pairs.first_P[place], pairs.stop_P[place])
    return [texts[pairs.document_N[n]][: pairs.end_N[n]].split()[-1] for n in at]


def test_pairs_before_a_place_are_the_last_24_up_to_it(readers: dict[str, Reader]) -> None:
    texts = [SHORT, LONG]
    places = [(0, 3), (0, len(SHORT)), (1, LONG.index(" w10")), (1, LONG.index(" w30")), (1, 1)]
    pairs = before(texts, places, readers)
    assert texts_before(pairs, texts, 0) == ["one"]
    assert texts_before(pairs, texts, 1) == ["one", "two", "two,", "three"]
    assert texts_before(pairs, texts, 2) == [f"w{i}" for i in range(10)]
    assert texts_before(pairs, texts, 3) == [f"w{i}" for i in range(6, 30)]
    assert texts_before(pairs, texts, 4) == []


def test_nothing_behind_the_last_place_of_a_document_is_read_nor_what_a_model_cannot_read(
    readers: dict[str, Reader],
) -> None:
    texts = [LONG, SHORT, LONG]
    places = [(0, LONG.index(" w5")), (2, LONG.index(" w7"))]
    pairs = before(texts, places, readers)
    assert pairs.document_N.tolist() == [0] * 5 + [2] * 7
    for number, words_read in ((0, 5), (1, 0), (2, 7)):
        for side in "ab":
            last = pairs.token_N[side][pairs.document_N == number]
            assert len(pairs.ids[number][side]) == (last[-1] + 1 if words_read else 0)
    pairs = before([LONG], [(0, len(LONG))], readers, {"a": 10_000, "b": 20})
    assert 0 < pairs.stop_P[0] < 40


def test_rows_are_what_a_model_is_after_the_layer_at_the_pairs(
    lms: dict[str, LanguageModel], readers: dict[str, Reader]
) -> None:
    texts = [SHORT, *make_texts()[:5]]
    places = [(i, len(text)) for i, text in enumerate(texts) if i != 2]
    pairs = before(texts, places, readers)
    for side, lm in lms.items():
        noted: list[int] = []
        rows_ND = read_rows(lm, 1, side, pairs, noted.append)
        assert sum(noted) == 5
        for number, text in enumerate(texts):
            mine = pairs.document_N == number
            if not mine.any():
                continue
            ids = torch.tensor([readers[side].tokenizer(text)["input_ids"]])
            x_TD = residual_after(lm, 1, ids, torch.ones_like(ids))[0]
            torch.testing.assert_close(
                rows_ND[torch.from_numpy(mine)], x_TD[pairs.token_N[side][mine]], rtol=1e-4, atol=1e-4
            )


def test_activations_are_those_of_the_crosscoder_and_none_of_outlying_pairs() -> None:
    crosscoder = random_crosscoder(scale_a=1.5, threshold=0.1)
    generator = torch.Generator().manual_seed(1)
    rows = {"a": torch.randn(9, 6, generator=generator), "b": torch.randn(9, 9, generator=generator)}
    rows["a"][2] *= 100
    rows["b"][5] *= 100
    found = activations(crosscoder, rows, {"a": 50.0, "b": 60.0}, device=torch.device("cpu"))
    expected = crosscoder.encode(rows["a"], rows["b"]).detach().numpy()
    assert (expected != 0).any(axis=1).all()
    expected[[2, 5]] = 0
    # Products may be taken in bfloat16 only where they cannot change what is active.
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-4, atol=1e-4)


def test_a_feature_holds_where_a_pair_before_is_above_a_quarter_of_its_largest_activation() -> None:
    rows = [
        [8.0, 0.0, 1.0, 9.0],
        [2.0, 0.0, 0.2, 0.0],  # exactly a quarter is not above it
        [2.1, 3.0, 0.3, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    f_NF = sparse.csr_matrix(np.array(rows, np.float32))
    f_NF.data[f_NF.data == 9] = 0  # an explicit zero, as of an outlying pair
    bounds = np.array([(0, 1), (1, 2), (1, 3), (2, 4), (3, 4), (2, 2)])
    none = np.zeros(0, np.int64)
    pairs = PairsBefore([], none, {"a": none, "b": none}, none, *bounds.T)
    found = feature_contexts(f_NF, pairs)
    assert found.which == [Context("feature", str(i)) for i in range(3)]
    np.testing.assert_array_equal(found.on_CP.toarray(), [[1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0]])


def test_pairs_of_made_continuations_end_at_their_places(continued, readers: dict[str, Reader]) -> None:
    """A place is the end of a pair itself, as the texts are read the same way again."""
    continuations = Continuations(continued)
    pairs = pairs_before(continuations, readers, FAR)
    ends, document = pairs.end_N[pairs.stop_P - 1], pairs.document_N[pairs.stop_P - 1]
    assert ends.tolist() == [place.end for place in continuations.places]
    assert document.tolist() == [place.document for place in continuations.places]
