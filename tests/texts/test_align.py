"""Both alignments: ends equal in both texts, rising, complete where they can be."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeldiff.sides import SIDES
from modeldiff.texts.align import align, content_of
from modeldiff.texts.words import word_ends
from modeldiff.workspace.plan import Tokens
from tests.texts.tokenizers_for_tests import aligned, bytes_trimmed, bytes_untrimmed, lower_case, pieces

ASCII = ["the ", "quick", " brown", "1989", "198", "9", "don't", "3.14", "a", ".", "\r\n", "\n\n", "\t", "  "]
OTHER = ["東京", "日本語", "😀", "👨\u200d👩\u200d👧", "🇩🇪", "e\u0301", "é", "\u0301", "…", "ﬁ", "안녕", "กำ"]
FRAGMENTS = st.sampled_from([*ASCII, *OTHER, "\u00a0", "\u3000", "\ufffd", "\u200b"])
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)
DOCUMENTS = st.lists(st.one_of(FRAGMENTS, PLAIN), max_size=12).map("".join)
PAIRS_OF_TOKENIZERS = st.sampled_from(
    [(bytes_trimmed, bytes_untrimmed), (bytes_untrimmed, pieces), (pieces, bytes_trimmed), (bytes_trimmed, lower_case)]
)
few = settings(max_examples=120, deadline=None)


def read_until(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@few
@given(DOCUMENTS, PAIRS_OF_TOKENIZERS)
@example("", (bytes_trimmed, bytes_untrimmed))
@example("😀", (bytes_trimmed, bytes_untrimmed))
@example("a\r\nb\r\n", (bytes_trimmed, bytes_untrimmed))
def test_pairs_by_offsets_end_at_the_same_visible_character(text, makers) -> None:
    tokens, found = aligned(text, makers[0](), makers[1]())
    assert (np.diff(found.char_end) > 0).all()
    for side in SIDES:
        assert (np.diff(found.token[side]) > 0).all()
        assert (found.window[side] >= 1).all()
        raw = tokens[side].ends[found.token[side]]
        for end, char_end in zip(raw.tolist(), found.char_end.tolist(), strict=True):
            assert 0 < char_end <= end <= len(text)
            assert text[char_end - 1 : char_end].strip("\u200b\ufeff\u2060 ").strip()
            assert not text[char_end:end].strip().strip("\u200b\ufeff\u2060").strip()


@few
@given(DOCUMENTS, st.sampled_from(["offsets", "greedy"]))
def test_what_both_models_have_read_at_a_pair_is_the_same_text(text, method) -> None:
    # Byte-level tokenizers give back every byte, so the tokens up to a pair must spell the text up to its end.
    a, b = bytes_trimmed(), bytes_untrimmed()
    tokens, found = aligned(text, a, b, method=method)
    for i, end in enumerate(found.char_end.tolist()):
        for side, tokenizer in (("a", a), ("b", b)):
            ids = tokens[side].ids[: found.token[side][i] + 1].tolist()
            read = read_until(tokenizer, ids)
            assert read.startswith(text[:end])
            assert not read[end:].strip().strip("\u200b\ufeff\u2060").strip()


@few
@given(DOCUMENTS, st.sampled_from([bytes_trimmed, bytes_untrimmed, pieces, lower_case]))
def test_identical_tokenizers_are_paired_completely(text, make) -> None:
    text = text.replace("\ufffd", "?")
    alignments = [aligned(text, make(), make())]
    if make is bytes_trimmed:
        alignments.append(aligned(text, make(), make(), method="greedy"))
    for _, found in alignments:
        content = found.content["a"]
        assert found.token["a"].tolist() == content.token[content.complete].tolist()
        assert found.token["b"].tolist() == found.token["a"].tolist()
        assert len(found.char_end) == 0 or found.char_end[-1] == content.end.max()


@few
@given(DOCUMENTS, PAIRS_OF_TOKENIZERS)
def test_word_ends_keep_the_matches_at_word_ends_and_only_those(text, makers) -> None:
    _, every = aligned(text, makers[0](), makers[1](), "tokens")
    _, words = aligned(text, makers[0](), makers[1](), "words")
    kept = words.char_end[words.kept].tolist()
    assert kept == [end for end in every.char_end.tolist() if word_ends(text)[end]]
    assert every.kept.all()


@few
@given(st.lists(st.sampled_from(["the", "quick", "1989", "universally", "man", "fox,", "."]), max_size=8).map(" ".join))
def test_on_plain_text_the_two_methods_agree(text) -> None:
    _, by_offsets = aligned(text, bytes_trimmed(), bytes_untrimmed())
    _, greedy = aligned(text, bytes_trimmed(), bytes_untrimmed(), method="greedy")
    assert greedy.char_end.tolist() == by_offsets.char_end.tolist()


def tokens_of(*spans: tuple[int, int]) -> Tokens:
    starts, ends = zip(*spans, strict=True)
    return Tokens(np.arange(len(spans), dtype=np.int32), np.array(starts, np.int32), np.array(ends, np.int32))


def test_only_the_last_of_the_tokens_that_spell_a_character_counts() -> None:
    content = content_of("a😀b", tokens_of((0, 1), (1, 2), (1, 2), (1, 3)))
    assert content.complete.tolist() == [True, False, False, True]


def test_white_space_and_special_tokens_are_no_content() -> None:
    content = content_of("ab \n c", tokens_of((-1, -1), (0, 3), (3, 5), (4, 6), (6, 6)))
    assert content.token.tolist() == [1, 3]
    assert content.end.tolist() == [2, 6]
    assert content.start.tolist() == [0, 5]


def test_windows_count_tokens_since_the_match_before() -> None:
    found = align("in 1989", {"a": tokens_of((0, 2), (2, 7)), "b": tokens_of((0, 2), (3, 6), (6, 7))})
    assert found.char_end.tolist() == [2, 7]
    assert found.window["a"].tolist() == [1, 1]
    assert found.window["b"].tolist() == [1, 2]


def test_greedy_loses_the_tail_where_the_decoded_texts_part() -> None:
    text = "the quick brown Fox jumps over"
    _, found = aligned(text, bytes_trimmed(), lower_case(), method="greedy")
    assert found.char_end[-1] == text.index("Fox") - 1
    _, by_offsets = aligned(text, bytes_trimmed(), lower_case())
    assert by_offsets.char_end[-1] == len(text)


@pytest.mark.parametrize("method", ["offsets", "greedy"])
def test_an_empty_text_has_no_pairs(method: str) -> None:
    _, found = aligned("", bytes_trimmed(), bytes_untrimmed(), method=method)
    assert len(found.char_end) == 0
