"""Texts to tokens: offsets into the text, special tokens, tokenizers without offsets."""

from __future__ import annotations

import logging

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from modeldiff.errors import InputError
from modeldiff.lm.tokens import encode, encode_plain
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WITH_BOS = tiny_tokenizer(add_bos=True, chat_template=CHAT_TEMPLATE)
UNTRIMMED = tiny_tokenizer(trim_offsets=False)
SPECIALS = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40).filter(lambda text: not any(mark in text for mark in SPECIALS)))
def test_ends_cover_any_text_in_order(text: str) -> None:
    for tokenizer in (TOKENIZER, UNTRIMMED):
        encoded = encode(tokenizer, text)
        assert len(encoded.ids) == len(encoded.starts) == len(encoded.ends) == len(encoded.special)
        assert encoded.ends == sorted(encoded.ends)
        assert (encoded.ends[-1] if text else 0) == len(text)
        assert not any(encoded.special)
        assert all(start <= end for start, end in zip(encoded.starts, encoded.ends, strict=True))
        assert tokenizer.decode(encoded.ids) == text


def test_the_pieces_of_one_character_share_its_end() -> None:
    encoded = encode(tiny_tokenizer(["plain words"]), "a😀b")
    assert encoded.starts == [0, 1, 1, 1, 1, 2]
    assert encoded.ends == [1, 2, 2, 2, 2, 3]


def test_tokenizers_differ_in_starts_and_agree_in_ends() -> None:
    text = "The quick brown fox, and the dog"
    trimmed, whole = encode(TOKENIZER, text), encode(UNTRIMMED, text)
    assert trimmed.ids == whole.ids
    assert trimmed.ends == whole.ends
    assert trimmed.starts != whole.starts


def test_special_tokens_are_flagged_wherever_they_stand() -> None:
    encoded = encode(WITH_BOS, "ab<|im_end|>c")
    assert encoded.special == [True, False, True, False]
    assert encoded.starts == [0, 0, 2, 12]
    assert encoded.ends == [0, 2, 12, 13]
    plain = encode(WITH_BOS, "ab<|im_end|>c", add_special_tokens=False)
    assert plain.ids == encoded.ids[1:]
    assert encode(WITH_BOS, "").special == [True]
    assert encode(TOKENIZER, "").ids == []


def test_the_token_for_unknown_text_is_not_special() -> None:
    byte_tokenizer = transformers.ByT5Tokenizer(unk_token="<unk>")
    byte_tokenizer.add_tokens(["<unk>"])
    ids, special, _ = encode_plain(byte_tokenizer, "a<unk>", add_special_tokens=True)
    assert special == [False, False, True]
    assert ids[1] == byte_tokenizer.unk_token_id


def test_a_tokenizer_without_offsets_says_to_align_greedily() -> None:
    with pytest.raises(
        InputError, match=r"^tokenizer of ByT5Tokenizer gives no character offsets: use --align greedy$"
    ):
        encode(transformers.ByT5Tokenizer(), "text")


def test_plain_pieces_need_no_offsets_and_join_to_the_text() -> None:
    ids, special, pieces = encode_plain(transformers.ByT5Tokenizer(), "é a")
    assert pieces == ["", "", " ", "a", "</s>"]
    assert special == [False, False, False, False, True]
    assert len(ids) == 5
    text = "The quick brown fox"
    ids, special, pieces = encode_plain(WITH_BOS, text)
    assert "".join(pieces) == "<s>" + text
    assert special == [True] + [False] * (len(ids) - 1)
    assert ids == encode(WITH_BOS, text).ids
    assert encode_plain(WITH_BOS, text, add_special_tokens=False)[0] == ids[1:]


def test_long_texts_are_neither_cut_nor_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 16
    log = logging.getLogger("transformers")
    log.addHandler(caplog.handler)
    try:
        text = "word " * 200
        assert encode(tokenizer, text).ends[-1] == len(text)
        assert "".join(encode_plain(tokenizer, text)[2]) == text
    finally:
        log.removeHandler(caplog.handler)
    assert caplog.records == []
