"""Texts to tokens: offsets into the text, special tokens, tokenizers without offsets."""

import logging

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from modeldiff.errors import InputError
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.plan import Tokens
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WITH_BOS = tiny_tokenizer(add_bos=True, chat_template=CHAT_TEMPLATE)
UNTRIMMED = tiny_tokenizer(trim_offsets=False)
SPECIALS = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")


def read(tokenizer, text: str) -> Tokens:
    return Reader(tokenizer).read(Record("s", text))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40).filter(lambda text: not any(mark in text for mark in SPECIALS)))
def test_ends_cover_any_text_in_order(text: str) -> None:
    for tokenizer in (TOKENIZER, UNTRIMMED):
        tokens = read(tokenizer, text)
        assert len(tokens.ids) == len(tokens.starts) == len(tokens.ends)
        assert (np.diff(tokens.ends) >= 0).all()
        assert tokens.ends.max(initial=0) == len(text)
        assert ((tokens.starts >= 0) & (tokens.starts <= tokens.ends)).all()
        assert tokenizer.decode(tokens.ids) == text


def test_the_pieces_of_one_character_share_its_end() -> None:
    tokens = read(tiny_tokenizer(["plain words"]), "a😀b")
    assert tokens.starts.tolist() == [0, 1, 1, 1, 1, 2]
    assert tokens.ends.tolist() == [1, 2, 2, 2, 2, 3]


def test_special_tokens_have_no_offsets_wherever_they_stand() -> None:
    tokens = read(WITH_BOS, "ab<|im_end|>c")
    assert tokens.starts.tolist() == [-1, 0, -1, 12]
    assert tokens.ends.tolist() == [-1, 2, -1, 13]
    assert read(WITH_BOS, "").starts.tolist() == [-1]
    assert len(read(TOKENIZER, "").ids) == 0


def test_of_a_chat_that_a_template_cuts_the_part_that_is_shown_has_its_place() -> None:
    forgetting = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
    answer = "<think>It is four.</think>It is four."
    messages = ({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer})
    record = Record("s", f"2+2?\n{answer}", messages)
    tokens = Reader(tiny_tokenizer(chat_template=forgetting)).read(record)
    ends = tokens.ends[tokens.ends >= 0]
    assert ends[ends > 4].min() > record.text.rindex("It")
    assert ends.max() == len(record.text)


@pytest.mark.parametrize("word", ["fox", "!"])
def test_a_word_that_pads_is_a_word_where_a_text_has_it(word: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": word})
    text = f"quick {word} jumps</s>"
    tokens = read(tokenizer, text)
    (token,) = np.flatnonzero(tokens.ids == tokenizer.pad_token_id)
    assert (tokens.starts[token], tokens.ends[token]) == (6, 6 + len(word))
    assert tokens.starts[-1] == -1


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(InputError, match=r"^tokenizer of ByT5Tokenizer gives no character offsets"):
        Reader(transformers.ByT5Tokenizer())


def test_long_texts_are_neither_cut_nor_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 16
    log = logging.getLogger("transformers")
    log.addHandler(caplog.handler)
    try:
        assert read(tokenizer, "word " * 200).ends[-1] == 1000
    finally:
        log.removeHandler(caplog.handler)
    assert caplog.records == []
