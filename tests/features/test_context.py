"""What is shown around a pair, on texts in which tokens, words and characters differ."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modeldiff.features.context as context_module
from modeldiff.features.context import FIXED, RAGGED, Ragged, Surroundings, ranges
from modeldiff.sides import SIDES
from modeldiff.workspace.plan import Document, PairTable, ShardPlan, Tokens


def tokens(text: str, pieces: list[str], *, special: int = 0) -> Tokens:
    """Tokens that cover the text piece by piece, after `special` tokens that are not part of it."""
    assert "".join(pieces) == text
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    lead = np.full(special, -1)
    ids = np.arange(len(pieces) + special)
    return Tokens(ids.astype(np.int32), *(np.concatenate([lead, one]).astype(np.int32) for one in (starts, ends)))


def plan_of(text: str, a: list[str], b: list[str], places: list[int], *, special_a: int = 0) -> ShardPlan:
    """One document; a pair at each of `places`, where a token of both sides ends."""
    sides = {"a": tokens(text, a, special=special_a), "b": tokens(text, b)}
    document = Document(text, 0, 7, sides)
    at = {side: np.array([one.ends.tolist().index(place) for place in places], np.int32) for side, one in sides.items()}
    ends = np.array(places, np.int32)
    return ShardPlan([document], PairTable(np.zeros(len(places), np.int32), at, ends, {}))


def shown(plan: ShardPlan, pair: int, n_context: int) -> dict[str, Any]:
    """Text, words and tokens of the window; the feature's activation at pair i is i + 1."""
    window_EW = np.array([[max(0, pair + offset + 1) for offset in range(-n_context, n_context + 1)]], np.float32)
    found = Surroundings(plan, n_context).of(np.array([pair]), window_EW)
    text = found["text/bytes"].tobytes().decode()

    def spans(name: str) -> list[tuple[str, float]]:
        places = zip(*(found[f"{name}/{column}"] for column in ("start", "end", "activation")), strict=True)
        return [(text[start:end], float(value)) for start, end, value in places]

    names = ("words", "tokens_a", "tokens_b")
    return {
        "text": text,
        "centre": spans("words")[found["centre"][0]][0],
        **{name: spans(name) for name in names},
    }


def test_a_word_of_several_tokens_is_whole_and_only_its_last_token_fires() -> None:
    text = "the cats sat"
    plan = plan_of(text, ["the", " c", "ats", " sat"], ["the", " cat", "s", " sat"], [3, 8, 12])
    found = shown(plan, 1, 1)
    assert found["text"] == text
    assert found["centre"] == "cats"
    assert found["words"] == [("the", 1), ("cats", 2), ("sat", 3)]
    assert found["tokens_a"] == [("the", 1), (" c", 0), ("ats", 2), (" sat", 3)]
    assert found["tokens_b"] == [("the", 1), (" cat", 0), ("s", 2), (" sat", 3)]


def test_the_window_is_cut_and_so_are_tokens_that_reach_out_of_it() -> None:
    text = "one two three four"
    plan = plan_of(text, ["one", " two", " three", " four"], ["one", " two", " three", " four"], [3, 7, 13, 18])
    found = shown(plan, 2, 1)
    assert found["text"] == "two three four"
    assert found["tokens_a"] == [("two", 2), (" three", 3), (" four", 4)]


def test_without_context_only_the_word_and_special_tokens_are_not_shown() -> None:
    plan = plan_of("a bc d", ["a", " bc", " d"], ["a", " bc", " d"], [1, 4, 6], special_a=2)
    assert shown(plan, 1, 0)["text"] == "bc"
    assert shown(plan, 0, 3)["tokens_a"] == [("a", 1), (" bc", 2), (" d", 3)]


def test_tokens_differ_where_they_begin_or_end_at_other_characters() -> None:
    text = "the cats sat\n here."
    a = ["the", " c", "ats", " sat", "\n", " here", "."]
    b = ["the ", "cats ", "s", "at\n", " ", "here", "."]
    sides = {"a": tokens(text, a, special=1), "b": tokens(text, b)}
    at = {"a": np.array([1, 3, 4, 6, 7], np.int32), "b": np.array([0, 1, 3, 5, 6], np.int32)}
    pairs = PairTable(np.zeros(5, np.int32), at, np.array([3, 8, 12, 18, 19], np.int32), {})
    plan = ShardPlan([Document(text, 0, 7, sides)], pairs)
    differ = Surroundings(plan, 1).tokens_differ(np.arange(5))
    assert differ.tolist() == [False, True, True, False, False], "white space at either end is no difference"
    # In the second of two documents.
    second = Document("a bc", 0, 8, {"a": tokens("a bc", ["a", " bc"]), "b": tokens("a bc", ["a", " b", "c"])})
    at = {"a": np.array([0, 1], np.int32), "b": np.array([0, 2], np.int32)}
    pairs = PairTable(np.ones(2, np.int32), at, np.array([1, 4], np.int32), {})
    plan = ShardPlan([*plan.documents, second], pairs)
    assert Surroundings(plan, 1).tokens_differ(np.array([1, 0, 1])).tolist() == [True, False, True]


@pytest.mark.parametrize("text", ["日本語です", "😀😀é😀 "])
def test_scripts_without_spaces_and_emoji(text: str) -> None:
    plan = plan_of(text, list(text), list(text), list(range(1, len(text) + 1)))
    found = shown(plan, 2, 2)
    assert found["text"] == text
    assert found["centre"] == text[2]
    assert [word for word, _ in found["words"]] == list(text)


def test_text_between_distant_pairs_is_bounded() -> None:
    text = "start " + "x" * 500 + " middle end"
    pieces = ["start", " " + "x" * 500, " middle", " end"]
    found = shown(plan_of(text, pieces, pieces, [5, 513, 517]), 1, 2)
    assert found["text"] == "middle end"


@given(
    texts=st.lists(st.text(alphabet=" \n\u3000ab😀", min_size=1, max_size=120), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_all_word_starts_at_once_equal_those_one_by_one(texts: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    documents, tables = [], []
    for index, text in enumerate(texts):
        # Tokens of random lengths, some of them no part of the text; both sides end together at the pairs.
        ends = np.flatnonzero(np.append(generator.random(len(text) - 1) < generator.choice([0.02, 0.4]), True)) + 1
        starts = np.maximum(0, ends - generator.integers(0, 60, len(ends)))
        starts[generator.random(len(ends)) < 0.2] = -1
        one = Tokens(np.arange(len(ends), dtype=np.int32), starts.astype(np.int32), ends.astype(np.int32))
        documents.append(Document(text, 0, index, {"a": one, "b": one}))
        first = int(generator.integers(0, len(ends)))  # the document may begin in the shard before
        tables.append((np.full(len(ends) - first, index), np.arange(first, len(ends)), ends[first:]))
    document, token, end = (np.concatenate(one).astype(np.int32) for one in zip(*tables, strict=True))
    pairs = PairTable(document, {"a": token, "b": token}, end, {})
    found = Surroundings(ShardPlan(documents, pairs)).start_N
    first_N = np.append(True, np.diff(document) > 0)
    assert found.tolist() == [word_start(documents, pairs, i, first=bool(first_N[i])) for i in range(len(document))]


def word_start(documents: list[Document], pairs: PairTable, pair: int, *, first: bool) -> int:
    """Character at which the word that ends at `pair` begins; `first`: no pair of its document is before it."""
    document = documents[pairs.document[pair]]
    end = int(pairs.char_end[pair])
    floor = 0 if first else int(pairs.char_end[pair - 1])
    starts = [int(document.tokens[side].starts[pairs.token[side][pair]]) for side in SIDES]
    start = max(floor, min((s for s in starts if 0 <= s <= end), default=end))
    while start < end - 1 and document.text[start].isspace():  # many tokens begin with the blank before the word
        start += 1
    while start > floor and end - start < context_module._MAX_WORD and not document.text[start - 1].isspace():
        start -= 1
    return start


def test_many_examples_at_once_equal_each_alone() -> None:
    text = "one two three four five six"
    pieces = ["one", " two", " three", " four", " five", " six"]
    plan = plan_of(text, pieces, pieces, [3, 7, 13, 18, 23, 27])
    surroundings = Surroundings(plan, 2)
    pair_E = np.array([0, 2, 2, 5])
    window_EW = np.arange(20, dtype=np.float32).reshape(4, 5)
    found = surroundings.of(pair_E, window_EW)
    for example, pair in enumerate(pair_E):
        alone = surroundings.of(np.array([pair]), window_EW[[example]])
        for name in FIXED:
            assert found[name][example] == alone[name][0]
        for name in RAGGED:
            for column, values in Ragged.from_flat(found, name).row(example).items():
                np.testing.assert_array_equal(values, alone[f"{name}/{column}"])


@given(
    rows=st.lists(st.lists(st.integers(0, 99), max_size=7), max_size=12),
    data=st.data(),
    part=st.sampled_from([1, 5, 1 << 17]),
)
def test_taken_lists_are_whole_and_in_the_asked_order(rows: list[list[int]], data: st.DataObject, part: int) -> None:
    lengths = np.array([len(row) for row in rows], np.int64)
    made = Ragged.of(lengths, {"x": np.array(list(itertools.chain(*rows)), np.int64)}, {"x": np.int64})
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=15)) if rows else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_module, "_PART", part)
        taken = made.take(np.array(order, np.int64))
    assert [taken.row(i)["x"].tolist() for i in range(len(order))] == [rows[i] for i in order]


@given(bounds=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=10))
def test_ranges_one_after_the_other(bounds: list[tuple[int, int]]) -> None:
    start_E = np.array([start for start, _ in bounds], np.int64)
    index_V, number_V = ranges(start_E, start_E + np.array([length for _, length in bounds], np.int64))
    expected = [(i, start + j) for i, (start, length) in enumerate(bounds) for j in range(length)]
    assert list(zip(index_V.tolist(), number_V.tolist(), strict=True)) == expected
