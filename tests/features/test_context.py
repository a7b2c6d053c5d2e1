"""What is shown around a pair, on texts in which tokens, words and characters differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import modeldiff.features.context as context_module
from modeldiff.features.context import Surroundings
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


def test_words_are_whole_their_last_tokens_fire_and_the_window_is_cut() -> None:
    text = "the cats sat"
    plan = plan_of(text, ["the", " c", "ats", " sat"], ["the", " cat", "s", " sat"], [3, 8, 12], special_a=2)
    found = shown(plan, 1, 1)
    assert (found["text"], found["centre"]) == (text, "cats")
    assert found["words"] == [("the", 1), ("cats", 2), ("sat", 3)]
    assert found["tokens_a"] == [("the", 1), (" c", 0), ("ats", 2), (" sat", 3)]
    assert found["tokens_b"] == [("the", 1), (" cat", 0), ("s", 2), (" sat", 3)]
    assert shown(plan, 1, 0)["text"] == "cats"
    found = shown(plan, 2, 1)
    assert (found["text"], found["tokens_a"]) == ("cats sat", [("c", 0), ("ats", 2), (" sat", 3)])


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


def test_scripts_without_spaces_and_long_texts_between_pairs() -> None:
    for text in ("日本語です", "😀😀é😀 "):
        found = shown(plan_of(text, list(text), list(text), list(range(1, len(text) + 1))), 2, 2)
        assert (found["text"], found["centre"]) == (text, text[2])
        assert [word for word, _ in found["words"]] == list(text)
    pieces = ["start", " " + "x" * 500, " middle", " end"]
    found = shown(plan_of("".join(pieces), pieces, pieces, [5, 513, 517]), 1, 2)
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
