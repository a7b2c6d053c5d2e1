"""A sample of whole texts with the codes of a few features: all that descriptions and detection are made from.

Memory and time grow with the pairs of the sample and the firings of the chosen features, not with the dictionary: the
others are never computed.

Legend: N pairs of the sample, W windows (texts as the models read them), G chosen features, V different words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.catalogue.stored import Arrays, kept
from modeldiff.console import progress, visible
from modeldiff.features.codes import Encoder, codes_arrays, joined_codes
from modeldiff.features.context import Surroundings
from modeldiff.features.measures.models import spread_texts
from modeldiff.workspace.activations import Block
from modeldiff.workspace.plan import ShardPlan

# Neighbouring texts are read together: about so many rows at once.
_GROUP_ROWS = 2048
_HASH = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Sample:
    """Pairs in the order of the store, each text whole."""

    words: list[str]
    """The V different words, without regard to case; a word is what ends at a pair (context.py)."""
    texts: list[str]
    """The different texts."""
    word_N: NDArray[np.int32]
    window_N: NDArray[np.int32]
    begin_N: NDArray[np.int64]
    """First character of the pair's word in its text."""
    end_N: NDArray[np.int64]
    """The character behind it."""
    kept_N: NDArray[np.bool_]
    """False for pairs with an outlying norm: whether a feature fires there is not known."""
    codes_NG: sparse.csc_matrix
    """float32; empty where not kept."""
    document_W: NDArray[np.int64]
    """Running number of the document in the harvest; the texts of a long document share it."""
    source_W: NDArray[np.int32]
    text_W: NDArray[np.int64]
    """Index into `texts`."""
    second_W: NDArray[np.bool_]
    """In the half of the documents that is held out; the other half makes the descriptions."""

    def firings(self, column: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(pairs, ascending, activations there) of the feature in this column."""
        part = slice(self.codes_NG.indptr[column], self.codes_NG.indptr[column + 1])
        order = np.argsort(self.codes_NG.indices[part])
        return self.codes_NG.indices[part][order], self.codes_NG.data[part][order]

    def text(self, start: int, stop: int) -> str:
        """From a pair to the one before `stop`, both of one text, on one line."""
        whole = self.texts[self.text_W[self.window_N[start]]]
        return visible(whole[self.begin_N[start] : self.end_N[stop - 1]])


def take_sample(encoder: Encoder, *, pairs: int, seed: int, resume: Path) -> Sample:
    """Read about `pairs` pairs in whole texts, spread evenly over the store.

    Args:
        encoder: of the G chosen features alone (see crosscoder/part.py).
        seed: of the halves.
        resume: folder for the codes of finished shards; an interrupted pass goes on behind them.

    Raises:
        InputError: the activations have no texts.
    """
    store, windows = encoder.store, 0
    words, texts = dict[str, int](), dict[str, int]()
    parts, codes = list[Arrays](), list[Arrays]()
    with progress("explain: pass over the texts", min(pairs, store.pairs), "pairs") as bar:
        for plan, blocks in spread_texts(store, pairs, _GROUP_ROWS):
            found = kept(resume / f"codes-{blocks[0].shard:05d}.safetensors", partial(_codes, encoder, blocks))
            part = _words(plan, blocks, words, texts)
            part["window_N"] += windows
            part["kept_N"] = found.pop("kept")
            windows += len(part["document_W"])
            codes.append(found)
            parts.append(part)
            bar.advance(len(part["kept_N"]))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Sample(
        words=list(words),
        texts=list(texts),
        codes_NG=joined_codes(codes, encoder.crosscoder.n_features).tocsc(),
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


def _codes(encoder: Encoder, blocks: Sequence[Block]) -> Arrays:
    codes_NG, kept_N = encoder.matrix(blocks)
    return {"kept": kept_N, **codes_arrays(codes_NG)}


def _words(plan: ShardPlan, blocks: Sequence[Block], words: dict[str, int], texts: dict[str, int]) -> Arrays:
    """The words and windows of the blocks' rows, windows counted from 0; new words and texts are added to those."""
    pairs = plan.pairs
    row_N = np.concatenate([np.arange(block.start, block.stop) for block in blocks])
    document_N = pairs.document[row_N]
    first_N = np.diff(document_N, prepend=-1) != 0
    begin_N = Surroundings(plan).start_N[row_N]
    end_N = pairs.char_end[row_N]
    spans = zip(document_N.tolist(), begin_N.tolist(), end_N.tolist(), strict=True)
    shown = (visible(plan.documents[one].text[begin:end].strip()).casefold() for one, begin, end in spans)
    windows = [plan.documents[one] for one in document_N[first_N].tolist()]
    return {
        "word_N": np.array([words.setdefault(word, len(words)) for word in shown], np.int32),
        "window_N": np.cumsum(first_N, dtype=np.int32) - 1,
        "begin_N": begin_N,
        "end_N": end_N,
        "document_W": np.array([one.index for one in windows], np.int64),
        "source_W": np.array([one.source for one in windows], np.int32),
        "text_W": np.array([texts.setdefault(one.text, len(texts)) for one in windows]),
    }
