"""Next-token distributions of two models with different vocabularies, on common ground: distributions over strings.

Every string that is a single token of both models is a bucket. Any other token counts for the longest of these strings
that it begins with (" poisonous" for " poison"), and one that begins with none, or stands for no text, for a bucket of
its own, OTHER. So the probabilities of either model's tokens add up to 1 over the same buckets. The end of the text is
a bucket too. Which way a longer word goes on is lost, in the same way for both models.

Legend: V tokens of a vocabulary, K buckets, P places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import transformers

# No token's text holds U+FFFD: it stands for bytes that are no character, which are OTHER.
OTHER = "\ufffd other"
END = "\ufffd end of text"
# A token is decoded after this text: by themselves some lose the blank that they begin with.
_ANCHOR = "a"


@dataclass(frozen=True)
class Buckets:
    """The strings that both models can say in one token, and where each model's tokens belong."""

    names: tuple[str, ...]
    """(K,): OTHER, END, then the strings in order."""
    of: dict[str, torch.Tensor]
    """By side: the bucket of each token id, (V,) int64."""

    def gather(self, side: str, p_PV: torch.Tensor) -> torch.Tensor:
        """Probabilities of tokens (P, V) as probabilities of buckets (P, K). V may exceed the tokenizer's size: models
        pad their vocabularies, and what is added there is OTHER."""
        of_V = torch.zeros(p_PV.shape[1], dtype=torch.int64)
        known = min(len(of_V), len(self.of[side]))
        of_V[:known] = self.of[side][:known]
        # A GPU adds in any order: in float64 that shows in no digit of the sum in float32.
        terms_PV = p_PV.double() if p_PV.device.type == "cuda" else p_PV
        # Whole rows are added up: along the other dimension a processor takes many times as long.
        p_KP = torch.zeros(len(self.names), p_PV.shape[0], dtype=terms_PV.dtype, device=p_PV.device)
        return p_KP.index_add_(0, of_V.to(p_PV.device), terms_PV.T.contiguous()).T.to(p_PV.dtype)


def common_buckets(strings: Mapping[str, Sequence[str | None]]) -> Buckets:
    """The buckets of two vocabularies, given by side what each token id says (`token_strings`)."""
    vocabularies = [{s for s in one if s is not None and s != END} for one in strings.values()]
    names = (OTHER, END, *sorted(set.intersection(*vocabularies)))
    number = {name: i for i, name in enumerate(names)}
    of = {side: torch.tensor([_bucket(s, number) for s in one], dtype=torch.int64) for side, one in strings.items()}
    return Buckets(names, of)


def token_strings(tokenizer: transformers.PreTrainedTokenizerBase) -> list[str | None]:
    """What each token id adds to a text; END for the end of the text; None for other tokens with a meaning of their
    own, for parts of a character, and for ids without a token."""
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    anchor: list[int] = tokenizer(_ANCHOR, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    before = decode(anchor)
    strings: list[str | None] = []
    for token in range(len(tokenizer)):
        if token == tokenizer.eos_token_id:
            strings.append(END)
            continue
        text = decode([*anchor, token])
        text = text[len(before) :] if text.startswith(before) else decode([token])
        strings.append(None if token in special or not text or "\ufffd" in text else text)
    return strings


def _bucket(string: str | None, number: Mapping[str, int]) -> int:
    if string is None:
        return number[OTHER]
    if string == END:
        return number[END]
    prefixes = (string[:length] for length in range(len(string), 0, -1))
    return next((number[prefix] for prefix in prefixes if prefix in number), number[OTHER])
