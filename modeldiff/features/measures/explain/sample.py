"""A sample of whole texts with the codes of a few features: all that descriptions and detection are made from.

Memory and time grow with the pairs of the sample and the firings of the chosen features, not with the dictionary: the
others are never computed.

Legend: N pairs of the sample, W windows (texts as the models read them), G chosen features, V different words.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from modeldiff.console import progress
from modeldiff.features.codes import Arrays, Encoder, block_rows
from modeldiff.features.context import Surroundings
from modeldiff.features.windows import spread_shards
from modeldiff.features.words import visible
from modeldiff.splits import spread_blocks
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import replace_into, temporary_path
from modeldiff.workspace.plan import ShardPlan

# Neighbouring texts are read together: about so many rows at once.
_GROUP_ROWS = 2048
_HASH = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Sample:
    """Pairs in the order of the store, each text whole."""

    words: list[str]
    """The V different words, without regard to case; a word is what ends at a pair (context.py)."""
    word_N: NDArray[np.int32]
    window_N: NDArray[np.int32]
    row_N: NDArray[np.int64]
    """Row in the store."""
    kept_N: NDArray[np.bool_]
    """False for pairs with an outlying norm: whether a feature fires there is not known."""
    codes_NG: sparse.csc_matrix
    """float32; empty where not kept."""
    document_W: NDArray[np.int64]
    """Running number of the document in the harvest; the texts of a long document share it."""
    source_W: NDArray[np.int32]
    text_W: NDArray[np.uint64]
    """Digest of the text: the same text twice has the same."""
    second_W: NDArray[np.bool_]
    """In the half of the documents that is held out; the other half makes the descriptions."""


def take_sample(encoder: Encoder, *, pairs: int, seed: int, resume: Path) -> Sample:
    """Read about `pairs` pairs in whole texts, spread evenly over the store.

    Args:
        encoder: of the G chosen features alone (see crosscoder/part.py).
        seed: of the halves.
        resume: folder for the codes of finished shards; an interrupted pass goes on behind them.

    Raises:
        InputError: the activations have no texts.
    """
    store = encoder.store
    shards = spread_shards(store.info.shards, pairs)
    share = min(1.0, pairs / sum(store.info.shards[shard] for shard in shards))
    vocabulary: dict[str, int] = {}
    parts: list[Arrays] = []
    codes: list[sparse.csc_matrix] = []
    windows = 0
    resume.mkdir(parents=True, exist_ok=True)
    with progress("explain: pass over the texts", sum(store.info.shards[s] for s in shards) * share, "pairs") as bar:
        for shard in shards:
            plan = store.plan(shard)
            groups = spread_blocks(_groups(plan, shard), max(1, round(share * len(plan.pairs))))
            path = resume / f"codes-{shard:05d}.safetensors"
            if not path.exists():
                temporary = temporary_path(path)
                save_file(_codes(encoder, groups), temporary)
                replace_into(temporary, path)
            found = load_file(path)
            part = _texts(plan, groups, vocabulary, windows, store.first_row[shard])
            part["kept_N"] = found["kept"].astype(bool)
            shape = (len(part["row_N"]), encoder.crosscoder.n_features)
            codes.append(sparse.csc_matrix((found["value"], (found["row"], found["column"])), shape=shape))
            windows += len(part["document_W"])
            parts.append(part)
            bar.advance(shape[0])
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Sample(
        words=list(vocabulary),
        codes_NG=sparse.vstack(codes, format="csc", dtype=np.float32),
        second_W=in_second_half(joined["document_W"], seed),
        **joined,
    )


def in_second_half(document: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Which documents are held out: about half of them, by a hash, whatever order the sources are mixed in."""
    # A finaliser of 64 bits: neighbouring numbers fall independently.
    mixed = (document.astype(np.uint64) + np.uint64(seed + 1)) * _HASH
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(63)).astype(bool)


def read_texts(store: ActivationStore, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The text from the first to the last pair (rows of the store, both of one text) of each span, on one line."""
    found = [""] * len(spans)
    shard_of = np.searchsorted(store.first_row, [first for first, _ in spans], side="right") - 1
    for shard in np.unique(shard_of).tolist():
        plan, begin = store.plan(shard), store.first_row[shard]
        start_N = Surroundings(plan).start_N
        for number in np.flatnonzero(shard_of == shard).tolist():
            first, last = (row - begin for row in spans[number])
            start = int(start_N[first])
            text = plan.documents[plan.pairs.document[first]].text
            found[number] = visible(text[start : int(plan.pairs.char_end[last])])
    return found


def _groups(plan: ShardPlan, shard: int) -> list[Block]:
    """All rows of a shard in blocks of neighbouring whole texts."""
    borders = np.searchsorted(plan.pairs.document, np.arange(len(plan.documents) + 1)).tolist()
    groups, start = [], 0
    for stop in borders[1:]:
        if stop - start >= _GROUP_ROWS or (stop == borders[-1] and stop > start):
            groups.append(Block(shard, start, stop))
            start = stop
    return groups


def _codes(encoder: Encoder, groups: Sequence[Block]) -> Arrays:
    """The non-zero codes: row (within the groups), column, value; and which rows are kept."""
    rows = block_rows(encoder.crosscoder.n_features)
    parts: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]] = []
    done = 0
    for group in groups:
        for start in range(group.start, group.stop, rows):
            codes, kept_B = encoder.sparse(Block(group.shard, start, min(start + rows, group.stop)))
            row, column = codes.row.astype(np.int32) + done, codes.feature.astype(np.int32)
            parts.append((row, column, codes.value, kept_B.astype(np.uint8)))
            done += len(kept_B)
    return {
        name: np.concatenate(columns)
        for name, columns in zip(("row", "column", "value", "kept"), zip(*parts, strict=True), strict=True)
    }


def _texts(
    plan: ShardPlan, groups: Sequence[Block], vocabulary: dict[str, int], first_window: int, first_row: int
) -> Arrays:
    """The words and texts of the groups' rows; new words are added to the vocabulary."""
    pairs = plan.pairs
    row_N = np.concatenate([np.arange(group.start, group.stop) for group in groups])
    document_N = pairs.document[row_N]
    changes = np.flatnonzero(np.diff(document_N)) + 1
    starts = [0, *changes.tolist(), len(row_N)]
    word_N, window_N = np.zeros(len(row_N), np.int32), np.zeros(len(row_N), np.int32)
    start_N = Surroundings(plan).start_N
    windows = []
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        document = plan.documents[document_N[start]]
        window_N[start:stop] = first_window + number
        windows.append((document.index, document.source, _digest(document.text)))
        for place in range(start, stop):
            pair = int(row_N[place])
            word = visible(document.text[start_N[pair] : int(pairs.char_end[pair])].strip()).casefold()
            word_N[place] = vocabulary.setdefault(word, len(vocabulary))
    index, source, digest = zip(*windows, strict=True)
    return {
        "word_N": word_N,
        "window_N": window_N,
        "row_N": row_N.astype(np.int64) + first_row,
        "document_W": np.array(index, np.int64),
        "source_W": np.array(source, np.int32),
        "text_W": np.array(digest, np.uint64),
    }


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
