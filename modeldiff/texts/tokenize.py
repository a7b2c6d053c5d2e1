"""One document as each of the two models reads it: token ids with character offsets into the document's text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from modeldiff.errors import InputError
from modeldiff.lm.chat import open_answer, render_chat
from modeldiff.texts.align import Decode, locate
from modeldiff.texts.sources import Record
from modeldiff.workspace.plan import Tokens


@dataclass(frozen=True)
class Reader:
    """One side's tokenizer, and how it gives offsets.

    Tokenizers differ in the starts they give: a byte-level token for " word" starts at the blank or at the word.
    Several tokens that spell the bytes of one character all carry its start and end. Use ends, which agree.

    Attributes:
        tokenizer: of the transformers package.
        needs_offsets: True: a tokenizer without character offsets is an error (which names --align greedy); False: its
            offsets are found by following the decoded text.
    """

    tokenizer: Any
    needs_offsets: bool

    @property
    def decode(self) -> Decode:
        """Token ids to text, special tokens included."""
        tokenizer = self.tokenizer
        return lambda ids: str(
            tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def read(self, record: Record) -> Tokens:
        """The tokens of a document; offsets are -1 for tokens that are not part of its text."""
        if not record.messages:
            return self._encode(record.text, add_special_tokens=True)
        rendered, spans = render_chat(self.tokenizer, list(record.messages))
        return _into_document(self._encode(rendered, add_special_tokens=False), record, rendered, spans)

    def read_opened(self, record: Record) -> Tokens:
        """The tokens of a chat that ends with a user's message, up to where the answer begins (`open_answer`).

        Offsets are -1 for tokens that are not part of the messages; for all of them where the messages cannot be found
        in what the template makes of them, or the tokenizer has no offsets.
        """
        rendered = open_answer(self.tokenizer, record.messages)
        spans = self._spans(record, rendered) if self.tokenizer.is_fast else []
        if spans:
            return _into_document(self._encode(rendered, add_special_tokens=False), record, rendered, spans)
        ids = self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        nowhere = np.full(len(ids), -1, np.int32)
        return Tokens(np.array(ids, np.int32), nowhere, nowhere.copy())

    def _spans(self, record: Record, rendered: str) -> list[tuple[int, int]]:
        """Where the messages stand in a text that goes on after them; none where they cannot be found."""
        try:
            closed, spans = render_chat(self.tokenizer, list(record.messages))
        except InputError:
            return []
        stop = spans[-1][1]
        return spans if closed[:stop] == rendered[:stop] else []

    def _encode(self, text: str, *, add_special_tokens: bool) -> Tokens:
        tokenizer = self.tokenizer
        if self.needs_offsets and not tokenizer.is_fast:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise InputError(f"tokenizer of {name} gives no character offsets: use --align greedy")
        asked = {"return_offsets_mapping": True, "return_special_tokens_mask": True} if tokenizer.is_fast else {}
        encoded = tokenizer(
            text, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False, **asked
        )
        ids = encoded["input_ids"]
        special_ids = _special_ids(tokenizer)
        special = [i in special_ids for i in ids]
        if not tokenizer.is_fast:
            return Tokens(np.array(ids, np.int32), *locate(text, ids, special, self.decode))
        outside = np.array(special, bool) | np.array(encoded["special_tokens_mask"], bool)
        starts_ends = np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2)
        starts, ends = np.where(outside[:, None], np.int32(-1), starts_ends).T
        return Tokens(np.array(ids, np.int32), starts, ends)


def _into_document(tokens: Tokens, record: Record, rendered: str, spans: list[tuple[int, int]]) -> Tokens:
    """Tokens of a rendered chat, with offsets into the joined message contents; template tokens get -1.

    A token that reaches over a content's edge belongs to it when only white space lies outside.
    """
    starts = np.full(len(tokens.ids), -1, np.int32)
    ends = np.full(len(tokens.ids), -1, np.int32)
    offset = 0
    for message, (begin, stop) in zip(record.messages, spans, strict=True):
        content = message["content"]
        # A template may strip a content: where what it shows begins in the content itself.
        shift = offset + content.find(rendered[begin:stop]) - begin
        for i in np.flatnonzero((tokens.starts >= 0) & (tokens.starts < stop) & (tokens.ends > begin)):
            start, end = int(tokens.starts[i]), int(tokens.ends[i])
            if not (rendered[start:begin] + rendered[stop:end]).strip():
                starts[i] = max(start, begin) + shift
                ends[i] = min(end, stop) + shift
        offset += len(content) + 1
    return Tokens(tokens.ids, starts, ends)


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Any) -> frozenset[int]:
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
