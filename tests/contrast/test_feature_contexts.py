"""Features as contexts: which pairs stand before a place, what the models are there, and which features hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from modeldiff.contrast.contexts import (
    PAIRS_BEFORE,
    Context,
    PairsBefore,
    activations,
    feature_contexts,
    pairs_before,
    read_rows,
)
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.documents import open_given
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import residual_after
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader
from tests.contrast.conftest import make_texts
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer


def continuations(texts: list[str], places: list[tuple[int, int]], drawn: str = "uniform") -> Any:
    """What `pairs_before` reads of them: documents and (document, end) of places."""
    return SimpleNamespace(
        documents=[Record("made", text) for text in texts],
        places=[SimpleNamespace(document=document, end=end, drawn=drawn) for document, end in places],
    )


SHORT = "one two, three"
LONG = " ".join(f"w{i}" for i in range(40))
FAR = {"a": 10_000, "b": 10_000}


def texts_before(pairs: PairsBefore, texts: list[str], place: int) -> list[str]:
    """The words that the pairs before a place end."""
    at = range(pairs.first_P[place], pairs.stop_P[place])
    return [texts[pairs.document_N[n]][: pairs.end_N[n]].split()[-1] for n in at]


def test_pairs_before_a_place_are_the_last_24_up_to_it(readers: dict[str, Reader]) -> None:
    assert PAIRS_BEFORE == 24
    texts = [SHORT, LONG]
    places = [(0, 3), (0, len(SHORT)), (1, LONG.index(" w10")), (1, LONG.index(" w30")), (1, 1)]
    pairs = pairs_before(continuations(texts, places), readers, FAR)
    assert texts_before(pairs, texts, 0) == ["one"]
    assert texts_before(pairs, texts, 1) == ["one", "two", "two,", "three"]
    assert texts_before(pairs, texts, 2) == [f"w{i}" for i in range(10)]
    assert texts_before(pairs, texts, 3) == [f"w{i}" for i in range(6, 30)]
    assert texts_before(pairs, texts, 4) == []


def test_a_prompt_is_read_as_a_chat_model_answers_it() -> None:
    """Its features are those of the tokens that the continuations go on from, template included."""
    prompt = "The lazy dog jumps"
    readers = {side: Reader(tiny_tokenizer(chat_template=CHAT_TEMPLATE), True) for side in "ab"}
    pairs = pairs_before(continuations([prompt], [(0, len(prompt))], drawn="given"), readers, FAR)
    document = open_given(Record("prompts", prompt), 0, readers, FAR)
    assert document is not None
    answered = document.readings["a"][0].ids
    assert "<|im_start|>user" in readers["a"].decode(answered)
    read = pairs.ids[0]["a"].tolist()
    assert read == answered[: len(read)]
    assert readers["a"].decode(read).endswith(prompt)
    assert texts_before(pairs, [prompt], 0) == prompt.split()


def test_nothing_behind_the_last_place_of_a_document_is_read(readers: dict[str, Reader]) -> None:
    texts = [LONG, SHORT, LONG]
    pairs = pairs_before(continuations(texts, [(0, LONG.index(" w5")), (2, LONG.index(" w7"))]), readers, FAR)
    assert pairs.document_N.tolist() == [0] * 5 + [2] * 7
    for number, words in ((0, 5), (1, 0), (2, 7)):
        for side in "ab":
            last = pairs.token_N[side][pairs.document_N == number]
            assert len(pairs.ids[number][side]) == (last[-1] + 1 if words else 0)


def test_pairs_that_a_model_cannot_read_are_left_out(readers: dict[str, Reader]) -> None:
    pairs = pairs_before(continuations([LONG], [(0, len(LONG))]), readers, {"a": 10_000, "b": 20})
    assert 0 < pairs.stop_P[0] < 40
    assert pairs.token_N["b"].max() < 20


def test_rows_are_what_a_model_is_after_the_layer_at_the_pairs(
    lm_a: LanguageModel, lm_b: LanguageModel, readers: dict[str, Reader]
) -> None:
    texts = [SHORT, *make_texts()[:5]]
    places = [(i, len(text)) for i, text in enumerate(texts) if i != 2]
    pairs = pairs_before(continuations(texts, places), readers, FAR)
    for side, lm in (("a", lm_a), ("b", lm_b)):
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


@pytest.fixture(scope="module")
def crosscoder() -> Crosscoder:
    config = CrosscoderConfig(
        width_a=16, width_b=24, n_a_only=4, n_shared=8, n_b_only=4, k=4, scale_a=1.5, threshold=0.5
    )
    made = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return made


def test_activations_are_those_of_the_crosscoder_and_none_of_outlying_pairs(crosscoder: Crosscoder) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = {"a": torch.randn(9, 16, generator=generator), "b": torch.randn(9, 24, generator=generator)}
    rows["a"][2] *= 100
    rows["b"][5] *= 100
    found = activations(crosscoder, rows, {"a": 50.0, "b": 60.0}, device=torch.device("cpu"))
    expected = crosscoder.encode(rows["a"], rows["b"]).detach().numpy()
    assert (expected != 0).any(axis=1).all()
    expected[[2, 5]] = 0
    # Products may be taken in bfloat16 only where they cannot change what is active.
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-4, atol=1e-4)
    everything = activations(crosscoder, rows, {"a": np.inf, "b": np.inf}, device=torch.device("cpu"))
    assert everything[2].nnz
    assert everything[5].nnz


def made_pairs(bounds: list[tuple[int, int]]) -> PairsBefore:
    first, stop = np.array(bounds).T
    none = np.zeros(0, np.int64)
    return PairsBefore([], none, {"a": none, "b": none}, none, first, stop)


def test_a_feature_holds_where_a_pair_before_is_above_a_quarter_of_its_largest_activation() -> None:
    f_NF = sparse.csr_matrix(
        np.array(
            [
                [8.0, 0.0, 1.0, 0.0],
                [2.0, 0.0, 0.2, 0.0],  # exactly a quarter is not above it
                [2.1, 3.0, 0.3, 0.0],
                [0.0, 0.0, 0.0, 0.0],
            ],
            np.float32,
        )
    )
    pairs = made_pairs([(0, 1), (1, 2), (1, 3), (2, 4), (3, 4), (2, 2)])
    found = feature_contexts(f_NF, pairs)
    assert found.which == [Context("feature", str(i)) for i in range(3)]
    np.testing.assert_array_equal(found.on_CP.toarray(), [[1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0]])


def test_a_feature_that_is_active_on_outlying_pairs_alone_is_no_context() -> None:
    """Their activations are explicit zeros."""
    f_NF = sparse.csr_matrix((np.array([0.0, 1.0]), (np.array([0, 1]), np.array([0, 1]))), shape=(2, 2))
    assert [one.name for one in feature_contexts(f_NF, made_pairs([(0, 2)])).which] == ["1"]


def test_pairs_of_made_continuations_end_at_their_places(continued, readers: dict[str, Reader]) -> None:
    """A place is the end of a pair itself, as the texts are read the same way again."""
    opened = Continuations(continued)
    pairs = pairs_before(opened, readers, FAR)
    ends = pairs.end_N[pairs.stop_P - 1]
    assert ends.tolist() == [place.end for place in opened.places]
    assert pairs.document_N[pairs.stop_P - 1].tolist() == [place.document for place in opened.places]
