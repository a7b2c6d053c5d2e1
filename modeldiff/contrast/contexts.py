"""Contexts: for each place, whether something is so there. Everywhere, a source of texts, a word before the place, or
a feature of a crosscoder.

A feature holds at a place when it is active, on one of the last pairs of tokens before the place, above a quarter of
its largest activation. For that the texts are read again, up to the layers that the crosscoder was trained on; nothing
of a harvest is needed.

Legend: P places, C contexts, N pairs, T tokens of a document, D width of a model, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.documents import Place, given_tokens, readable_pairs
from modeldiff.contrast.statistics import Bools, Longs
from modeldiff.contrast.words import present, words_of
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.inference import ActiveEntries
from modeldiff.lm.batches import batches, padded, token_budget
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import residual_after
from modeldiff.sides import SIDES
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader

# Words before a place that count as its context.
WORDS_BEFORE = 64
# Pairs before a place that count, and the share of a feature's largest activation that it must exceed there.
PAIRS_BEFORE, SHARE_OF_MAX = 24, 0.25
# Pairs at a time that go through the crosscoder.
_ROWS = 4096


@dataclass(frozen=True)
class Context:
    kind: str
    """everywhere, source, word or feature."""
    name: str
    """The source's label, the word, the feature's number; empty for everywhere."""


@dataclass(frozen=True)
class Contexts:
    which: list[Context]
    """(C,)"""
    on_CP: sparse.csr_matrix
    """(C, P) float32, 1 where it holds."""

    def __len__(self) -> int:
        return len(self.which)

    @cached_property
    def always_C(self) -> Bools:
        """Which context is everywhere."""
        return np.array([one.kind == "everywhere" for one in self.which], bool)

    def on(self, context: int) -> Bools:
        """(P,) where a context holds."""
        return self.on_CP[context].toarray()[0] > 0

    def those(self, keep_C: Bools) -> Contexts:
        return Contexts([one for one, keep in zip(self.which, keep_C, strict=True) if keep], self.on_CP[keep_C])

    def often_enough(self, first_P: Bools, *, least: int, most: float) -> Contexts:
        """Those that hold on `least` places of either half (`first_P`: the first one) and at most a share `most` of
        each. Everywhere stays."""
        keep_C = np.ones(len(self), bool)
        for half_P in (first_P, ~first_P):
            count_C = np.asarray(self.on_CP[:, half_P].sum(axis=1))[:, 0]
            keep_C &= (count_C >= least) & (count_C <= most * half_P.sum())
        return self.those(keep_C | self.always_C)


def none(places: int) -> Contexts:
    return Contexts([], sparse.csr_matrix((0, places), dtype=np.float32))


def joined(parts: Sequence[Contexts]) -> Contexts:
    which = [one for part in parts for one in part.which]
    return Contexts(which, sparse.vstack([part.on_CP for part in parts], format="csr"))


def everywhere(places: int) -> Contexts:
    return Contexts([Context("everywhere", "")], sparse.csr_matrix(np.ones((1, places), np.float32)))


def sources(labels: Sequence[str]) -> Contexts:
    """One for each label of the places' texts, where there are several."""
    return _present("source", labels, lambda label: [label], 1) if len(set(labels)) > 1 else none(len(labels))


def words(before: Sequence[str], *, least: int) -> Contexts:
    """One for each word among the last WORDS_BEFORE words of the text before a place that stands there before `least`
    places."""
    return _present("word", before, lambda text: words_of(text)[-WORDS_BEFORE:], least)


def _present(kind: str, texts: Sequence[str], words_in: Callable[[str], list[str]], least: int) -> Contexts:
    names, on_PC = present(texts, words_in, least)
    return Contexts([Context(kind, name) for name in names], on_PC.T.tocsr())


def jaccard(on_CP: sparse.csr_matrix, on_1P: sparse.csr_matrix) -> NDArray[np.float64]:
    """(C,) share of the places of either context that both hold at."""
    both_C = (on_CP @ on_1P.T).toarray()[:, 0].astype(np.float64)
    either_C = np.asarray(on_CP.sum(axis=1), np.float64)[:, 0] + on_1P.sum() - both_C
    return both_C / np.maximum(either_C, 1)


@dataclass(frozen=True)
class PairsBefore:
    """The pairs of tokens before the places, document by document."""

    ids: list[dict[str, NDArray[np.int32]]]
    """Of each document, by side (T,): the tokens up to that of the last pair."""
    document_N: Longs
    """Position of each pair's document; ascending."""
    token_N: dict[str, Longs]
    """By side: index among the document's tokens."""
    end_N: Longs
    """Characters of the document before the end of each pair."""
    first_P: Longs
    """For each place the first pair that counts; `stop_P` is after its last. None: both are equal."""
    stop_P: Longs


def pairs_before(continuations: Continuations, readers: dict[str, Reader], context: dict[str, int]) -> PairsBefore:
    """The pairs that count for the places; `context`: tokens that each model can read."""
    places_of: list[list[Place]] = [[] for _ in continuations.documents]
    for place in continuations.places:
        places_of[place.document].append(place)
    found = []
    with progress("align places", len(places_of), "documents") as bar:
        for record, places in zip(continuations.documents, places_of, strict=True):
            found.append(_pairs_of(record, places, readers, context))
            bar.advance(1)
    ids, tokens, ends, stops = zip(*found, strict=True)
    counts = [len(end) for end in ends]
    start_P = np.repeat(np.cumsum([0, *counts[:-1]]), [len(stop) for stop in stops])
    stop_P = np.concatenate(stops)
    return PairsBefore(
        list(ids),
        np.repeat(np.arange(len(ids)), counts),
        {side: np.concatenate([token[side] for token in tokens]) for side in SIDES},
        np.concatenate(ends),
        start_P + np.maximum(0, stop_P - PAIRS_BEFORE),
        start_P + stop_P,
    )


def _pairs_of(record: Record, places: list[Place], readers: dict[str, Reader], context: dict[str, int]) -> Any:
    """(token ids, indices of the pairs' tokens, characters before their ends) of a document, up to its last place, and
    for each place how many pairs end before it or there."""
    prompt = not record.messages and any(place.given for place in places)
    read = {
        side: given_tokens(record, len(record.text), readers[side]) if prompt else readers[side].read(record)
        for side in SIDES
    }
    tokens, end = readable_pairs(record.text, read, context)
    stops = np.searchsorted(end, [place.end for place in places], side="right")
    pairs = int(stops.max(initial=0))
    token = {side: tokens[side][:pairs].astype(np.int64) for side in SIDES}
    ids = {side: read[side].ids[: token[side][-1] + 1 if pairs else 0] for side in SIDES}
    return ids, token, end[:pairs], stops


def read_rows(
    lm: LanguageModel, layer: int, side: str, pairs: PairsBefore, note: Callable[[int], None]
) -> torch.Tensor:
    """(N, D) the model's residual stream after `layer` at all pairs, in its dtype, on the CPU. `note` is told how many
    documents were read, batch by batch."""
    rows_ND = torch.empty(len(pairs.document_N), lm.width, dtype=lm.dtype)
    start = np.searchsorted(pairs.document_N, np.arange(len(pairs.ids) + 1))
    with_pairs = [i for i, ids in enumerate(pairs.ids) if len(ids[side])]
    for batch in batches([len(pairs.ids[i][side]) for i in with_pairs], token_budget(lm)):
        chosen = [with_pairs[b] for b in batch]
        ids_BT, mask_BT = padded([torch.from_numpy(pairs.ids[i][side].astype(np.int64)) for i in chosen])
        x_BTD = residual_after(lm, layer, ids_BT, mask_BT)
        for b, i in enumerate(chosen):
            mine = slice(start[i], start[i + 1])
            rows_ND[mine] = x_BTD[b, torch.from_numpy(pairs.token_N[side][mine]).to(x_BTD.device)].cpu()
        note(len(chosen))
    return rows_ND


def activations(
    crosscoder: Crosscoder,
    rows: dict[str, torch.Tensor],
    limits: dict[str, float],
    *,
    device: torch.device,
    note: Callable[[int], None] = lambda _: None,
) -> sparse.csr_matrix:
    """(N, F) float32: the crosscoder's activations at the pairs, `rows` by side (N, D) in raw units; none at pairs
    whose norm exceeds the limit of a side. `note` is told how many pairs were taken in, part by part."""
    active = ActiveEntries(crosscoder.to(device).eval())
    parts = []
    for start in range(0, len(rows["a"]), _ROWS):
        x = {side: rows[side][start : start + _ROWS].to(device) for side in SIDES}
        inside = torch.ones(len(x["a"]), dtype=torch.bool, device=device)
        for side in SIDES:
            inside &= x[side].float().norm(dim=1) <= limits[side]
        flat_K, value_K = active.of(x["a"], x["b"])
        row, feature = np.divmod(flat_K.cpu().numpy(), crosscoder.n_features)
        value = value_K.cpu().numpy() * inside.cpu().numpy()[row]
        parts.append(sparse.csr_matrix((value, (row, feature)), shape=(len(x["a"]), crosscoder.n_features)))
        note(len(x["a"]))
    return sparse.vstack(parts, format="csr", dtype=np.float32)


def feature_contexts(f_NF: sparse.csr_matrix, pairs: PairsBefore) -> Contexts:
    """A context for each feature that is active at all."""
    largest_F = f_NF.max(axis=0).toarray()[0]
    codes = f_NF.tocoo()
    strong = codes.data > SHARE_OF_MAX * largest_F[codes.col]
    at = (codes.row[strong], codes.col[strong])
    on_NF = sparse.csr_matrix((np.ones(len(at[0]), np.float32), at), shape=f_NF.shape)
    lengths = pairs.stop_P - pairs.first_P
    start = np.concatenate([[0], np.cumsum(lengths)])
    pair = np.arange(start[-1]) - np.repeat(start[:-1] - pairs.first_P, lengths)
    before_PN = sparse.csr_matrix((np.ones(len(pair), np.float32), pair, start), shape=(len(lengths), f_NF.shape[0]))
    on_FP = (before_PN @ on_NF).T.tocsr()
    on_FP.data = np.ones_like(on_FP.data)
    which = np.flatnonzero(largest_F > 0)
    return Contexts([Context("feature", str(i)) for i in which.tolist()], on_FP[which])
