"""Texts to token ids with character offsets, or with decoded pieces for tokenizers that give no offsets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import transformers

from modeldiff.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """One tokenized text; all lists have one entry per token.

    Offsets are what the tokenizer says, and tokenizers differ: a byte-level token for " word" starts at the blank or
    at the word, depending on the tokenizer; several tokens that spell the bytes of one character all carry that
    character's start and end, so that only the last of them completes it; tokens that stand for no text are empty.
    Use ends, which agree between tokenizers, rather than starts.
    """

    ids: list[int]
    """Token ids."""
    starts: list[int]
    """Index of a token's first character in the text."""
    ends: list[int]
    """One past a token's last character."""
    special: list[bool]
    """True for tokens with a meaning of their own: begin and end of text, roles and turns of a chat template."""


def encode(tokenizer: transformers.PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True) -> Encoded:
    """Tokenize a text of any length, with character offsets into it.

    Give add_special_tokens=False for a text rendered by `render_chat`, which holds them already.
    Raises InputError for a tokenizer without offsets.
    """
    if not tokenizer.is_fast:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise InputError(f"tokenizer of {name} gives no character offsets: use --align greedy")
    tokens = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids: list[int] = tokens["input_ids"]
    special_ids = _special_ids(tokenizer)
    return Encoded(
        ids=ids,
        starts=[start for start, _ in tokens["offset_mapping"]],
        ends=[end for _, end in tokens["offset_mapping"]],
        special=[bool(added) or i in special_ids for i, added in zip(ids, tokens["special_tokens_mask"], strict=True)],
    )


def encode_plain(
    tokenizer: transformers.PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True
) -> tuple[list[int], list[bool], list[str]]:
    """Tokenize with any tokenizer: ids, special flags, and each token decoded by itself.

    A token that is a part of a character's bytes decodes to U+FFFD or to nothing; some tokenizers drop the blank
    before a word.
    """
    tokens = tokenizer(text, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)
    ids: list[int] = tokens["input_ids"]
    special_ids = _special_ids(tokenizer)
    pieces = [tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False) for i in ids]
    return ids, [i in special_ids for i in ids], pieces


@lru_cache(maxsize=8)
def _special_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of tokens that mark structure. The token for unknown text is none, unless it has a second use."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    unknown = named.pop("unk_token", None)
    if unknown not in named.values():
        added.discard(unknown)
    return frozenset(added | set(named.values()))
