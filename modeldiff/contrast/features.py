"""Features of a crosscoder as contexts: one holds at a place when it is active, on one of the last pairs before the
place, above a quarter of its largest activation.

The texts are read again, up to the layers that the crosscoder was trained on; nothing of a harvest is needed.

Legend: P places, N pairs, D width of a model, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.contrast.contexts import Context, Contexts
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.documents import aligned, whole_tokens
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.inference import ActiveEntries
from modeldiff.lm.batches import batches, padded, token_budget
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import residual_after
from modeldiff.sides import SIDES
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.plan import Tokens

# Pairs before a place that count, and the share of a feature's largest activation that it must exceed there.
PAIRS_BEFORE, SHARE_OF_MAX = 24, 0.25
_ROWS = 4096


@dataclass(frozen=True)
class PairsBefore:
    """The pairs of tokens before the places, document by document."""

    tokens: list[dict[str, Tokens]]
    """Of each document, by side."""
    document_N: NDArray[np.int64]
    """Position of each pair's document; ascending."""
    token_N: dict[str, NDArray[np.int64]]
    """By side: index among the document's tokens."""
    end_N: NDArray[np.int64]
    """Characters of the document before the end of each pair."""
    first_P: NDArray[np.int64]
    """For each place its first pair among all; `stop_P` is after its last. None: both are equal."""
    stop_P: NDArray[np.int64]


def pairs_before(continuations: Continuations, readers: dict[str, Reader], context: dict[str, int]) -> PairsBefore:
    """The pairs that count for the places.

    Args:
        context: tokens that each model can read.
    """
    of_document: list[list[int]] = [[] for _ in continuations.documents]
    for i, place in enumerate(continuations.places):
        of_document[place.document].append(i)
    tokens: list[dict[str, Tokens]] = []
    document, ends = [], []
    token: dict[str, list[NDArray[np.int64]]] = {side: [] for side in SIDES}
    first_P, stop_P = (np.zeros(len(continuations.places), np.int64) for _ in range(2))
    total = 0
    for number, record in enumerate(continuations.documents):
        given = any(continuations.places[i].drawn == "given" for i in of_document[number])
        read = {side: whole_tokens(record, readers[side], given=given) for side in SIDES}
        alignment = aligned(read, record.text)
        fits = alignment.kept.copy()
        for side in SIDES:
            fits &= alignment.token[side] < context[side]
        kept = np.flatnonzero(fits)
        last = 0
        for i in of_document[number]:
            stop = int(np.searchsorted(alignment.char_end[kept], continuations.places[i].end, side="right"))
            first_P[i], stop_P[i] = total + max(0, stop - PAIRS_BEFORE), total + stop
            last = max(last, stop)
        kept = kept[:last]
        total += last
        document.append(np.full(last, number, np.int64))
        ends.append(alignment.char_end[kept])
        for side in SIDES:
            token[side].append(alignment.token[side][kept].astype(np.int64))
        tokens.append({side: _first(read[side], token[side][-1]) for side in SIDES})
    return PairsBefore(
        tokens,
        np.concatenate(document),
        {side: np.concatenate(token[side]) for side in SIDES},
        np.concatenate(ends),
        first_P,
        stop_P,
    )


def _first(tokens: Tokens, at: NDArray[np.int64]) -> Tokens:
    """The tokens up to the last one that is asked for."""
    stop = int(at[-1]) + 1 if len(at) else 0
    return Tokens(tokens.ids[:stop], tokens.starts[:stop], tokens.ends[:stop])


def read_rows(
    lm: LanguageModel, layer: int, side: str, pairs: PairsBefore, note: Callable[[int], None]
) -> torch.Tensor:
    """(N, D) the model's residual stream after `layer` at all pairs, in its dtype, on the CPU.

    Args:
        note: told how many documents were read, batch by batch.
    """
    rows_ND = torch.empty(len(pairs.document_N), lm.width, dtype=lm.dtype)
    start = np.searchsorted(pairs.document_N, np.arange(len(pairs.tokens) + 1))
    lengths = [len(tokens[side].ids) for tokens in pairs.tokens]
    with_pairs = [i for i, length in enumerate(lengths) if length]
    for batch in batches([lengths[i] for i in with_pairs], token_budget(lm)):
        chosen = [with_pairs[b] for b in batch]
        ids_BT, mask_BT = padded([torch.from_numpy(pairs.tokens[i][side].ids.astype(np.int64)) for i in chosen])
        x_BTD = residual_after(lm, layer, ids_BT, mask_BT)
        for b, i in enumerate(chosen):
            mine = slice(start[i], start[i + 1])
            rows_ND[mine] = x_BTD[b, torch.from_numpy(pairs.token_N[side][mine]).to(x_BTD.device)].cpu()
        note(len(chosen))
    return rows_ND


def activations(
    crosscoder: Crosscoder, rows: dict[str, torch.Tensor], limits: dict[str, float], *, device: torch.device
) -> sparse.csr_matrix:
    """(N, F) float32: what the crosscoder makes of the pairs; nothing of pairs with an outlying norm.

    Args:
        rows: by side (N, D), raw units.
        limits: by side, the largest norm that is not outlying.
    """
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
    return sparse.vstack(parts, format="csr", dtype=np.float32)


def feature_contexts(f_NF: sparse.csr_matrix, pairs: PairsBefore, skip: NDArray[np.bool_] | None = None) -> Contexts:
    """A context for each feature that is active at all.

    Args:
        skip: (F,) features to leave out.
    """
    largest_F = f_NF.max(axis=0).toarray()[0]
    codes = f_NF.tocoo()
    strong = codes.data > SHARE_OF_MAX * largest_F[codes.col]
    on_NF = sparse.csr_matrix(
        (np.ones(int(strong.sum()), np.float32), (codes.row[strong], codes.col[strong])), shape=f_NF.shape
    )
    lengths = pairs.stop_P - pairs.first_P
    start = np.concatenate([[0], np.cumsum(lengths)])
    column = np.arange(start[-1]) - np.repeat(start[:-1] - pairs.first_P, lengths)
    before_PN = sparse.csr_matrix(
        (np.ones(len(column), np.float32), column, start), shape=(len(lengths), f_NF.shape[0])
    )
    on_FP = (before_PN @ on_NF).T.tocsr()
    on_FP.data = np.ones_like(on_FP.data)
    wanted = largest_F > 0
    if skip is not None:
        wanted &= ~skip
    which = np.flatnonzero(wanted)
    return Contexts([Context("feature", str(i)) for i in which.tolist()], on_FP[which])
