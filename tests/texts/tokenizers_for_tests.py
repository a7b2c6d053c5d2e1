"""Tokenizers that cut texts in different ways and report offsets in different ways."""

import json
from functools import cache

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from modeldiff.sides import SIDES
from modeldiff.texts.align import align
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader
from tests.tiny_models import TEXTS, tiny_tokenizer

OTHER_TEXTS = ("universally quick foxes and 1989 cafés, 198 dogs", "東京 is a truth; new man \r\n lines 😀😀 'quotes'")


@cache
def bytes_trimmed():
    """Byte-level; the blank before a word is not part of a token's offsets."""
    return tiny_tokenizer(TEXTS)


@cache
def bytes_untrimmed():
    """Byte-level with another vocabulary; the blank is part of the offsets; <s> before each text."""
    return tiny_tokenizer(OTHER_TEXTS, 400, add_bos=True, trim_offsets=False)


@cache
def pieces():
    """A mark for the blank, <0xNN> for characters out of the vocabulary."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    ascii_only = [text.encode("ascii", "ignore").decode() for text in (*TEXTS, *OTHER_TEXTS)]
    tokenizer.train_from_iterator(
        ascii_only, trainers.BpeTrainer(vocab_size=420, special_tokens=specials[:2], show_progress=False)
    )
    data = json.loads(tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    for name in specials[2:]:
        vocabulary.setdefault(name, len(vocabulary))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), unk_token="<unk>", bos_token="<s>"
    )


@cache
def lower_case():
    """Words in lower case without accents: what it decodes is not the text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *OTHER_TEXTS], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def readers(a, b) -> dict[str, Reader]:
    return {"a": Reader(a), "b": Reader(b)}


def aligned(text: str, a, b, pair_at: str = "tokens", method: str = "offsets"):
    """(tokens by side, alignment) of a plain text."""
    both = readers(a, b)
    tokens = {side: both[side].read(Record("s", text)) for side in SIDES}
    decode = {side: both[side].decode for side in SIDES} if method == "greedy" else None
    return tokens, align(text, tokens, pair_at, decode)
