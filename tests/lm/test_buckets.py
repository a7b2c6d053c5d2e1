"""Common strings of two vocabularies: where known tokens go, and that no probability is lost.

Legend: P places, V tokens, K buckets.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.lm.buckets import END, OTHER, Buckets, common_buckets, token_strings
from tests.tiny_models import TEXTS, tiny_tokenizer


def bucket_of(buckets: Buckets, side: str, token: int) -> str:
    return buckets.names[int(buckets.of[side][token])]


def test_known_strings() -> None:
    a = [" poison", " po", "ous", None, END, " poisonous ivy", "x", "ou"]
    b = [END, " poison", " poisonous", " po", "q", None, "ous"]
    buckets = common_buckets({"a": a, "b": b})
    assert buckets.names == (OTHER, END, " po", " poison", "ous")
    found = {side: [bucket_of(buckets, side, i) for i in range(len(one))] for side, one in (("a", a), ("b", b))}
    # A word that only one model has whole counts for the longest common string that it begins with.
    assert found["a"] == [" poison", " po", "ous", OTHER, END, " poison", OTHER, OTHER]
    assert found["b"] == [END, " poison", " poison", " po", OTHER, OTHER, "ous"]
    # What a model's padded vocabulary adds is OTHER.
    p_PK = common_buckets({"a": ["x"], "b": ["x"]}).gather("b", torch.tensor([[0.25, 0.75]]))
    assert p_PK[0].tolist() == [0.75, 0, 0.25]


strings = st.lists(st.one_of(st.none(), st.just(END), st.text("ab ", min_size=1, max_size=4)), min_size=1, max_size=12)


@given(strings, strings, st.integers(0, 3), st.integers(0, 2**31))
def test_probability_is_conserved_and_strings_begin_with_their_bucket(
    a: list[str | None], b: list[str | None], padding: int, seed: int
) -> None:
    buckets = common_buckets({"a": a, "b": b})
    generator = torch.Generator().manual_seed(seed)
    for side, own in (("a", a), ("b", b)):
        p_PV = torch.rand(3, len(own) + padding, generator=generator).softmax(dim=1)  # models pad their vocabularies
        p_PK = buckets.gather(side, p_PV)
        assert p_PK.shape == (3, len(buckets.names))
        assert torch.allclose(p_PK.sum(dim=1), torch.ones(3), atol=1e-6)
        for token, string in enumerate(own):
            name = bucket_of(buckets, side, token)
            assert name == OTHER or string == name or (string or "").startswith(name)
            if string is not None and string in a and string in b:
                assert name == string


def test_strings_of_a_tokenizer() -> None:
    tokenizer = tiny_tokenizer(TEXTS, add_bos=True)
    strings = token_strings(tokenizer)
    vocabulary = tokenizer.get_vocab()
    assert len(strings) == len(tokenizer)
    assert strings[vocabulary["</s>"]] == END
    assert strings[vocabulary["<s>"]] is None
    assert strings[vocabulary["<|im_start|>"]] is None
    word = max(vocabulary, key=lambda token: (token.startswith("Ġ") and token[1:].isalpha()) * len(token))
    assert strings[vocabulary[word]] == f" {word[1:]}"
    assert strings[vocabulary["e"]] == "e"
    assert strings[vocabulary["Ġ"]] == " "
    # Half of a character is no string.
    assert strings[vocabulary["æ"]] is None
    assert all("\ufffd" not in s for s in strings if s not in (None, END))


def test_tokenizers_that_drop_the_first_blank_keep_it_here() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "▁a": 1, "a": 2, "▁the": 3, "s": 4, "</s>": 5}
    raw = Tokenizer(models.Unigram([(token, -1.0) for token in vocabulary], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    assert tokenizer.decode([3]) == "the"
    assert token_strings(tokenizer) == [None, " a", "a", " the", "s", END]
