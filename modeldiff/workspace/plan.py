"""The plan file of a shard: its texts, both tokenizations, and which token of A ends where which of B does.

Written before any model is loaded. Characters are counted in the document's text (Python string indices). A document
may be split over two shards: then each shard's file holds the whole document, and only its own pairs.

Layout (normative; M documents, N pairs; fields of `Document`, `Tokens` and `PairTable` say what the arrays hold):
    shards/00000.plan.h5?                 absent when activations were imported without texts
        documents/text_bytes (C,) uint8   all texts, one after the other, UTF-8 ("surrogatepass")
        documents/text_offsets (M + 1,) int64    text i is text_bytes[text_offsets[i]:text_offsets[i + 1]]
        documents/source (M,) int32
        documents/index (M,) int64
        tokens_a/offsets (M + 1,) int64   the tokens of document i are those from offsets[i] to offsets[i + 1]
        tokens_a/ids, tokens_a/starts, tokens_a/ends (Ta,) int32    an imported text without token ids has -1
        tokens_b/offsets (M + 1,) int64
        tokens_b/ids, tokens_b/starts, tokens_b/ends (Tb,) int32
        pairs/document, pairs/char_end (N,) int32    ordered by document, in it by place
        pairs/token_{a,b}, pairs/window_{a,b} (N,) int32
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from modeldiff.errors import DamagedError
from modeldiff.sides import SIDES
from modeldiff.workspace.hdf5 import NewFile, open_hdf5

Ints = NDArray[np.int32]


@dataclass
class Tokens:
    """One side's tokens of one document, as the model reads them (special and template tokens included)."""

    ids: Ints
    starts: Ints
    """Character offsets into the document's text; -1: not part of it (special tokens, chat template)."""
    ends: Ints


@dataclass
class Document:
    text: str
    source: int
    """Index into the store's list of source labels."""
    index: int
    """Running number of the document in the whole harvest."""
    tokens: dict[str, Tokens]
    """By side, "a" and "b"."""


@dataclass
class PairTable:
    """Arrays of length N, int32, one row for each pair, in the order of the activation rows."""

    document: Ints
    """Position of the document in this shard's `documents`."""
    token: dict[str, Ints]
    """By side: index of the token in the document whose activation was taken."""
    char_end: Ints
    """Character offset in the document's text at which both tokens end."""
    window: dict[str, Ints]
    """By side: number of tokens since the previous place where both tokenizations ended (1 = token by token)."""

    def __len__(self) -> int:
        return len(self.document)


@dataclass
class ShardPlan:
    documents: list[Document]
    pairs: PairTable


def write_plan(path: Path, plan: ShardPlan) -> None:
    """Write a plan file. The same plan gives the same bytes."""
    with NewFile(path) as file:
        documents = plan.documents
        # One byte array and offsets: variable-length strings live on a heap, slow and not byte-stable.
        # "surrogatepass": a text with a lone surrogate is kept as it is instead of ending the harvest.
        texts = [d.text.encode("utf-8", "surrogatepass") for d in documents]
        file["documents/text_bytes"] = np.frombuffer(b"".join(texts), np.uint8)
        file["documents/text_offsets"] = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        file["documents/source"] = np.array([d.source for d in documents], np.int32)
        file["documents/index"] = np.array([d.index for d in documents], np.int64)
        for side in SIDES:
            tokens = [d.tokens[side] for d in documents]
            file[f"tokens_{side}/offsets"] = np.cumsum([0, *(len(t.ids) for t in tokens)], dtype=np.int64)
            for column in ("ids", "starts", "ends"):
                values = [np.zeros(0, np.int32), *(getattr(t, column) for t in tokens)]
                file[f"tokens_{side}/{column}"] = np.concatenate(values).astype(np.int32)
            file[f"pairs/token_{side}"] = plan.pairs.token[side].astype(np.int32)
            file[f"pairs/window_{side}"] = plan.pairs.window[side].astype(np.int32)
        file["pairs/document"] = plan.pairs.document.astype(np.int32)
        file["pairs/char_end"] = plan.pairs.char_end.astype(np.int32)


def read_plan(path: Path) -> ShardPlan:
    """Read a plan file. Raises DamagedError: it cannot be opened or lacks a dataset."""
    try:
        with open_hdf5(path) as file:
            return _read_plan(file)
    except (OSError, KeyError) as error:
        raise DamagedError(f"{path}: cannot be read as a plan file ({error})") from None


def _read_plan(file: h5py.File) -> ShardPlan:
    content, borders = file["documents/text_bytes"][()].tobytes(), file["documents/text_offsets"][()]
    texts = [content[start:stop].decode("utf-8", "surrogatepass") for start, stop in itertools.pairwise(borders)]
    sources, indices = file["documents/source"][()].tolist(), file["documents/index"][()].tolist()
    tokens: dict[str, list[Tokens]] = {}
    for side in SIDES:
        spans = list(itertools.pairwise(file[f"tokens_{side}/offsets"][()].tolist()))
        columns = [file[f"tokens_{side}/{column}"][()] for column in ("ids", "starts", "ends")]
        tokens[side] = [Tokens(*(column[start:stop] for column in columns)) for start, stop in spans]
    by_side = ({side: tokens[side][i] for side in SIDES} for i in range(len(texts)))
    documents = [Document(*fields) for fields in zip(texts, sources, indices, by_side, strict=True)]
    pairs = PairTable(
        document=file["pairs/document"][()],
        token={side: file[f"pairs/token_{side}"][()] for side in SIDES},
        char_end=file["pairs/char_end"][()],
        window={side: file[f"pairs/window_{side}"][()] for side in SIDES},
    )
    return ShardPlan(documents, pairs)
