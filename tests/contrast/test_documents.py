"""Documents: which are drawn, which places both models can go on from and are continued, and what is read there."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modeldiff.contrast.documents import (
    CANDIDATES,
    PASSAGE_CHARS,
    Document,
    Place,
    Reading,
    choose_places,
    drawn_documents,
    open_document,
    open_given,
    passage,
    read_prompts,
)
from modeldiff.errors import InputError
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader
from modeldiff.texts.words import word_ends
from tests.contrast.conftest import make_texts
from tests.texts.tokenizers_for_tests import bytes_trimmed, bytes_untrimmed
from tests.tiny_models import CHAT_TEMPLATE, TEXTS, tiny_tokenizer

# The second begins every text with <s> and counts the blank before a word to its token.
READERS = {"a": Reader(bytes_trimmed()), "b": Reader(bytes_untrimmed())}
CONTEXT = {"a": 512, "b": 512}


def records(count: int) -> list[Record]:
    return [Record("made", f"text {i}") for i in range(count)]


def test_documents_are_drawn_in_order_with_their_numbers() -> None:
    drawn = drawn_documents(iter(records(100)), 30, seed=0)
    numbers = [number for number, _ in drawn]
    assert len(numbers) == 30
    assert numbers == sorted(set(numbers))
    assert all(record.text == f"text {number}" for number, record in drawn)
    assert drawn == drawn_documents(records(100), 30, 0)
    assert drawn != drawn_documents(records(100), 30, 1)
    assert [number for number, _ in drawn_documents(records(3), 30, 0)] == [0, 1, 2]
    # At most fifty times as many are read.
    stream = iter(records(1000))
    assert max(number for number, _ in drawn_documents(stream, 2, 0)) < 100
    assert len(list(stream)) >= 899


def test_every_document_is_drawn_as_often_as_any_other() -> None:
    counts = Counter(number for seed in range(600) for number, _ in drawn_documents(records(20), 5, seed))
    assert stats.chisquare([counts[number] for number in range(20)]).pvalue > 1e-3


@given(st.integers(0, 999))
def test_a_passage_of_a_longer_text_begins_after_a_blank_if_there_is_one(seed: int) -> None:
    text = " ".join(str(i) for i in range(2000))
    found = passage(text, random.Random(seed))
    assert PASSAGE_CHARS - 10 <= len(found) <= PASSAGE_CHARS
    assert f" {found}" in f" {text}"
    for text in ("word " * (PASSAGE_CHARS // 5), "京" * (3 * PASSAGE_CHARS)):
        assert passage(text, random.Random(seed)) == text[:PASSAGE_CHARS]


def decoded(document: Document, side: str, end: int) -> str:
    tokenizer = READERS[side].tokenizer
    return tokenizer.decode(document.prompt(side, end), skip_special_tokens=True, clean_up_tokenization_spaces=False)


WORDS = [*" ".join(TEXTS).split(), "don't", "3.14", "\n", "東京", "\u2028", "e\u0301"]


@given(st.lists(st.sampled_from(WORDS), max_size=40))
def test_a_place_is_where_both_models_have_read_the_same_and_a_word_ends(words: list[str]) -> None:
    text = " ".join(words)
    document = open_document(Record("made", text), 0, READERS, CONTEXT, seed=0)
    if document is None:
        return
    assert 0 < len(document.ends) <= CANDIDATES
    assert document.ends == sorted(set(document.ends))
    for end in document.ends:
        assert word_ends(text)[end]
        assert text[end:].strip()  # something follows
        for side in "ab":
            assert decoded(document, side, end) == text[:end]
    assert document.prompt("b", document.ends[0])[0] == READERS["b"].tokenizer.bos_token_id


def test_a_place_is_within_what_the_models_may_read() -> None:
    text = make_texts()[0]
    for context in ({"a": 20, "b": 512}, {"a": 512, "b": 20}):
        document = open_document(Record("made", text), 0, READERS, context, 0)
        assert document is not None
        assert all(len(document.prompt(side, end)) <= context[side] for side in "ab" for end in document.ends)
    assert open_document(Record("made", text), 0, READERS, {"a": 3, "b": 512}, 0) is None
    # It has words before it.
    short = open_document(Record("made", "one two three four five six"), 0, READERS, CONTEXT, 0)
    assert short is not None
    assert short.ends == [len("one two three four five")]


def test_the_places_of_a_document_depend_on_the_seed_and_its_number_alone() -> None:
    record = Record("made", " ".join(make_texts()[:5]))
    assert open_document(record, 3, READERS, CONTEXT, 0) == open_document(record, 3, READERS, CONTEXT, 0)
    ends = {tuple(open_document(record, n, READERS, CONTEXT, seed).ends) for n, seed in ((3, 0), (4, 0), (3, 1))}
    assert len(ends) == 3
    documents = [plain(i, 8) for i in range(40)]
    assert chosen(documents) == chosen(documents) != chosen(documents, seed=1)
    of_one = [place.end for place in chosen(documents, uniform=0.0) if place.document == 7]
    assert [place.end for place in chosen(documents[7:8], uniform=0.0)] == of_one


@pytest.fixture(scope="module")
def chatting() -> dict[str, Reader]:
    """B has a chat template, A has none."""
    return {"a": Reader(tiny_tokenizer()), "b": Reader(tiny_tokenizer(chat_template=CHAT_TEMPLATE))}


def chat(*messages: tuple[str, str]) -> Record:
    made = tuple({"role": role, "content": content} for role, content in messages)
    return Record("chats", "\n".join(content for _, content in messages), made)


CHAT = chat(("system", "Be brief."), ("user", "A fox?"), ("assistant", "Yes, a fox."), ("user", "And a dog?"))


def test_each_end_of_a_users_message_is_a_place_where_each_models_template_opens_the_answer(chatting) -> None:
    document = open_document(CHAT, 5, chatting, CONTEXT, 0)
    assert document is not None
    assert document.given
    before = ["Be brief.\nA fox?", "Be brief.\nA fox?\nYes, a fox.\nAnd a dog?"]
    assert [document.text[:end] for end in document.ends] == before
    read = {side: [chatting[side].decode(document.prompt(side, end)) for end in document.ends] for side in "ab"}
    first = "System: Be brief.\n\nUser: A fox?\n\nAssistant:"
    assert read["a"] == [first, first + " Yes, a fox.\n\nUser: And a dog?\n\nAssistant:"]
    assert read["b"][0] == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA fox?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert read["b"][1].endswith("<|im_start|>user\nAnd a dog?<|im_end|>\n<|im_start|>assistant\n")
    # Of those that do not all fit, the first are kept.
    length = len(document.prompt("b", document.ends[0]))
    short = open_document(CHAT, 0, chatting, {"a": 512, "b": length}, 0)
    assert short is not None
    assert short.ends == document.ends[:1]
    assert open_document(CHAT, 0, chatting, {"a": 512, "b": length - 1}, 0) is None
    assert open_document(chat(("assistant", "Hello there, you.")), 0, chatting, CONTEXT, 0) is None


@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [
        ("txt", "\ufeffWho?\r\n\r\n  Why\u2028not? \n \t\nCafé\x0b?", ["Who?", "  Why\u2028not? ", "Café\x0b?"]),
        # Half a character becomes one that every tokenizer takes.
        (
            "JSONL",
            '\ufeff{"q": "Who?\\nWhy?"}\r\n{"q": "  "}\r\n{"q": "東京 \\ud83d", "text": 3}\n\n',
            ["Who?\nWhy?", "東京 \ufffd"],
        ),
    ],
)
def test_prompts_are_the_lines_of_a_text_file_or_the_field_of_its_records(
    tmp_path: Path, suffix: str, content: str, expected: list[str]
) -> None:
    (tmp_path / f"prompts.{suffix}").write_bytes(content.encode())
    assert [record.text for record in read_prompts(tmp_path / f"prompts.{suffix}", "q")] == expected


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("prompts.csv", b"a,b", "ends in '.csv'"),
        ("prompts.txt", b"\n \n", "holds no prompt"),
        ("prompts.txt", b"good\n\xff\xfe\n", "not UTF-8"),
        ("prompts.jsonl", b'{"text": "x"}\n{"other": 1}', "line 2: field 'text' is missing"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_prompts(tmp_path / name, "text")
    assert str(tmp_path / name) in str(caught.value)


def test_a_prompt_is_a_users_message_for_a_model_with_a_template_and_a_text_for_the_other(chatting) -> None:
    document = open_given(Record("prompts", "A fox?"), 7, chatting, CONTEXT)
    assert document is not None
    assert (document.text, document.source, document.number, document.ends) == ("A fox?", "prompts", 7, [6])
    assert document.given
    assert chatting["a"].tokenizer.decode(document.prompt("a", 6)) == "A fox?"
    assert chatting["b"].tokenizer.decode(document.prompt("b", 6)) == (
        "<s><|im_start|>user\nA fox?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert open_given(Record("prompts", "A fox? " * 200), 0, chatting, {"a": 512, "b": 100}) is None


def plain(number: int, candidates: int) -> Document:
    reading = [Reading(list(range(99)), list(range(5, 5 + candidates)))]
    return Document("text", "made", number, list(range(candidates)), {"a": reading, "b": reading})


def chosen(documents: list[Document], divergence: list[float] | None = None, **changed: Any) -> list[Place]:
    values = np.array(divergence or [0.5] * sum(len(document.ends) for document in documents), np.float32)
    return choose_places(documents, values, **{"places": len(documents), "uniform": 0.5, "seed": 0, **changed})


@pytest.mark.parametrize(("places", "each"), [(16, 1), (17, 2), (1, 1), (999, 8)])
def test_every_document_gives_as_many_places_as_any_other_in_order_and_none_twice(places: int, each: int) -> None:
    divergence = (np.arange(83) / 100).tolist()
    found = chosen([plain(i, 8) for i in range(10)] + [plain(10, 3)], divergence, places=places)
    assert Counter(place.document for place in found) == dict.fromkeys(range(10), each) | {10: min(3, each)}
    at = [(place.document, place.end) for place in found]
    assert at == sorted(set(at))
    np.testing.assert_allclose([place.divergence for place in found], [divergence[8 * d + end] for d, end in at])


@pytest.mark.parametrize(("uniform", "even"), [(0.0, 0), (0.25, 50), (0.5, 100), (1.0, 200)])
def test_the_share_that_is_drawn_evenly_is_kept_over_the_documents(uniform: float, even: int) -> None:
    for each in (1, 2):
        found = chosen([plain(i, 8) for i in range(200)], places=200 * each, uniform=uniform)
        assert Counter(place.drawn for place in found)["uniform"] == even * each


@pytest.mark.parametrize("sources", [2, 3, 4])
def test_sources_that_take_turns_get_the_same_kinds_of_places(sources: int) -> None:
    """Else a habit of all texts would look like one of every second text."""
    found = chosen([plain(i, 8) for i in range(1200)])
    even = Counter(place.document % sources for place in found if place.drawn == "uniform")
    for source in range(sources):
        assert even[source] == pytest.approx(600 / sources, abs=4 * (300 / sources) ** 0.5)


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
