"""One document as each of the two models reads it: token ids with character offsets into the document's text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from modeldiff.errors import InputError
from modeldiff.lm.chat import name_of, open_answer, render_chat
from modeldiff.lm.geometry import Geometry
from modeldiff.lm.load import load_tokenizer, read_geometry
from modeldiff.lm.ref import ModelRef
from modeldiff.texts.align import Decode
from modeldiff.texts.normalized import ends_read
from modeldiff.texts.sources import Record
from modeldiff.workspace.plan import Tokens

# How vocabularies spell the blank before a word.
_BLANKS = " \u2581\u0120"
# Every tokenizer has a token for something of this.
_PROBE = "a 1 . я ا 一 あ"


@dataclass(frozen=True)
class Reader:
    """One side's tokenizer, of the transformers package.

    Tokenizers differ in the starts they give: a byte-level token for " word" starts at the blank or at the word.
    Several tokens that spell the bytes of one character all carry its start and end. Use ends, which agree.
    Raises InputError for a tokenizer that gives no character offsets, and in reading, where the model that the
    `geometry` is of has no embedding for a token.
    """

    tokenizer: Any
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            what = f"tokenizer of {name_of(self.tokenizer)} gives no character offsets"
            raise InputError(f"{what}: a fast tokenizer is needed")

    @property
    def decode(self) -> Decode:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return lambda ids: str(self.tokenizer.decode(list(ids), **options))

    @property
    def added(self) -> tuple[int, int]:
        """How many special tokens it puts before and after every plain text. A text's own are not among them."""
        return _added(self.tokenizer)

    def read(self, record: Record) -> Tokens:
        """The tokens of a document; offsets are -1 for tokens that are not part of its text."""
        if not record.messages:
            return self._encode(record.text, add_special_tokens=True)
        rendered, spans = render_chat(self.tokenizer, list(record.messages))
        return _into_document(self._encode(rendered, add_special_tokens=False), record, rendered, spans)

    def read_opened(self, record: Record) -> Tokens:
        """The tokens of a chat that ends with a user's message, up to where the answer begins (`open_answer`). Offsets
        are -1 for tokens that are not part of the messages; for all where the messages cannot be found in what the
        template makes of them."""
        rendered = open_answer(self.tokenizer, record.messages)
        tokens = self._encode(rendered, add_special_tokens=False)
        try:
            closed, spans = render_chat(self.tokenizer, list(record.messages))
        except InputError:
            closed, spans = "", []
        if spans and rendered.startswith(closed[: spans[-1][1]]):
            return _into_document(tokens, record, rendered, spans)
        nowhere = np.full(len(tokens.ids), -1, np.int32)
        return Tokens(tokens.ids, nowhere, nowhere.copy())

    def _encode(self, text: str, *, add_special_tokens: bool) -> Tokens:
        encoded = self.tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        ids = np.array(encoded["input_ids"], np.int32)
        if self.geometry and len(ids):
            self.geometry.check_ids(int(ids.max()), self.tokenizer)
        added = np.array(encoded["special_tokens_mask"], bool)
        starts, ends = np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2).T
        if normalizer := self.tokenizer.backend_tokenizer.normalizer:
            ends[~added] = ends_read(text, starts[~added], ends[~added], normalizer.normalize_str)
        outside = added | np.isin(ids, list(_special_ids(self.tokenizer)))
        return Tokens(ids, np.where(outside, np.int32(-1), starts), np.where(outside, np.int32(-1), ends))


def open_reader(ref: ModelRef, side: str) -> Reader:
    """The reader of a model's tokenizer, for the tokens that the model knows. Raises as `load_model`; no weights are
    read."""
    return Reader(load_tokenizer(ref), read_geometry(ref, f"{side.upper()} ({ref.short_name})"))


def _into_document(tokens: Tokens, record: Record, rendered: str, spans: list[tuple[int, int]]) -> Tokens:
    """Tokens of a rendered chat, with offsets into the joined message contents; template tokens get -1. A token that
    reaches over a content's edge belongs to it when only white space lies outside."""
    starts = np.full(len(tokens.ids), -1, np.int32)
    ends = np.full(len(tokens.ids), -1, np.int32)
    offset = 0
    for message, (begin, stop) in zip(record.messages, spans, strict=True):
        content = message["content"]
        # A template may strip a content, or show its end alone: where what it shows begins in the content itself.
        shown = rendered[begin:stop]
        at = content.rfind(shown) if content.rstrip().endswith(shown) else content.find(shown)
        shift = offset + at - begin
        for i in np.flatnonzero((tokens.starts >= 0) & (tokens.starts < stop) & (tokens.ends > begin)):
            start, end = int(tokens.starts[i]), int(tokens.ends[i])
            if not (rendered[start:begin] + rendered[stop:end]).strip():
                starts[i] = max(start, begin) + shift
                ends[i] = min(end, stop) + shift
        offset += len(content) + 1
    return Tokens(tokens.ids, starts, ends)


@lru_cache(maxsize=8)
def _added(tokenizer: Any) -> tuple[int, int]:
    mask = tokenizer(_PROBE, add_special_tokens=True, return_special_tokens_mask=True)["special_tokens_mask"]
    of_text = np.flatnonzero(np.array(mask) == 0)
    if not len(of_text):
        raise InputError(f"tokenizer of {name_of(tokenizer)} reads nothing of {_PROBE!r}: expected one for texts")
    return int(of_text[0]), len(mask) - 1 - int(of_text[-1])


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of tokens that mark structure. The token for unknown text is none, unless it has a second use, nor is a word
    or single character that has a use besides (as the token that pads)."""
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    special |= {one: tokenizer.special_tokens_map[name] for name, one in named.items()}
    unknown = named.pop("unk_token", None)
    if unknown not in named.values():
        special.pop(unknown, None)
    return frozenset(one for one, text in special.items() if not (text.strip(_BLANKS).isalnum() or len(text) == 1))
