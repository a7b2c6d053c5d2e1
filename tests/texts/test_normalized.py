"""Tokenizers that change a text before they cut it: at a pair both models have read the text up to its end."""

import unicodedata
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tests.texts.tokenizers_for_tests import aligned
from tests.tiny_models import tiny_tokenizer

TEXTS = ("Un café à côté du musée. Le garçon naïf.", "東京 ガラス パン ｶﾞﾗｽ", "한국어 ᄒᆞᆫ", "हिन्दी में क़लम", "việt nữ ậ")
NORMALIZERS = {
    "none": None,
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "BERT": normalizers.BertNormalizer(),
    "no accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
    "quotes": normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFC()]),
}
LETTERS = "e a A o k क न ｶ ﾊ か は ᄒ ᄀ 한 ب א ท 1 . ` `` 東".split()  # noqa: SIM905
MARKS = list("\u0301\u0323\u0302\u0308\u0327\u093c\u093f\uff9e\uff9f\u3099\u1161\u11ab\u0e35\u0e48\u05b8")
OTHER = [" ", "\n", "é", "ậ", "ガ", "ﬁ", "½", "…", "ｶﾞ", "\u200d", "\u0344", "\u212b", "😀", "\u00a0", "\u00ad"]
DOCUMENTS = st.lists(st.sampled_from([*LETTERS, *MARKS, *MARKS, *OTHER]), max_size=14).map("".join)
NAMES = st.sampled_from(list(NORMALIZERS))


@cache
def tokenizer_of(name: str, trim: bool):
    vocabulary = 300 if name in ("NFC", "NFD", "BERT") else 380
    return tiny_tokenizer(TEXTS, vocabulary, trim_offsets=trim, normalizer=NORMALIZERS[name])


@settings(max_examples=400, deadline=None)
@given(DOCUMENTS, NAMES, NAMES, st.sampled_from(["words", "tokens"]), st.booleans())
@example("Un cafe\u0301.", "none", "NFC", "tokens", True)
@example("a\u0301\u0323x", "none", "NFC", "tokens", True)
@example("a\u0301\u0323", "NFD", "NFC", "tokens", False)
@example("東京 ｶﾞﾗｽ ﾊﾟﾝ.", "none", "NFKC", "words", True)
@example("`````a````", "none", "quotes", "tokens", False)
@example("e" + "\u0301\u0323" * 50 + "x", "none", "NFC", "tokens", True)
def test_both_models_have_read_the_text_up_to_the_end_of_a_pair(text, name_a, name_b, pair_at, trim) -> None:
    tokenizers = {"a": tokenizer_of(name_a, trim), "b": tokenizer_of(name_b, trim)}
    tokens, found = aligned(text, tokenizers["a"], tokenizers["b"], pair_at)
    for side, name in (("a", name_a), ("b", name_b)):
        normalize = NORMALIZERS[name].normalize_str if NORMALIZERS[name] else str
        for token, end in zip(found.token[side][found.kept].tolist(), found.char_end[found.kept].tolist(), strict=True):
            read = tokenizers[side].decode(tokens[side].ids[: token + 1].tolist(), clean_up_tokenization_spaces=False)
            assert "".join(read.split()) == "".join(normalize(text[:end]).split())


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, NAMES)
def test_no_end_of_a_text_is_lost_beside_itself(text, name) -> None:
    _, found = aligned(text, tokenizer_of(name, True), tokenizer_of(name, True))
    content = found.content["a"]
    assert found.token["a"].tolist() == content.token[content.complete].tolist() == found.token["b"].tolist()


@pytest.mark.parametrize(("name", "other"), [("none", "none"), ("none", "NFC"), ("NFC", "NFC"), ("NFKC", "BERT")])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_every_word_end_is_a_pair_in_both_forms_of_a_text(name: str, other: str, form: str) -> None:
    text = unicodedata.normalize(form, TEXTS[0])
    _, found = aligned(text, tokenizer_of(name, True), tokenizer_of(other, True), "words")
    assert np.count_nonzero(found.kept) == 11
