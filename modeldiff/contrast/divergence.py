"""How far apart two models' next words are at each place: the Jensen-Shannon divergence over the strings that both say
in one token (lm/buckets.py).

One model is in memory at a time: of the first one's distribution only the likeliest strings are kept, and what the rest
has together. The divergence is that of the two distributions over the strings that either keeps and one rest.

Legend: N places, K strings kept of a place, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.contrast.documents import Document
from modeldiff.lm.batches import CHUNK_VALUES, batches, chunks, padded, token_budget
from modeldiff.lm.buckets import Buckets
from modeldiff.lm.model import LanguageModel

# Strings kept of a place.
KEPT = 128

Kept = tuple[NDArray[np.int32], NDArray[np.float32]]
"""(buckets (N, K), their probabilities (N, K)) of places."""


def likeliest(
    lm: LanguageModel, side: str, documents: list[Document], buckets: Buckets, note: Callable[[int], None]
) -> Kept:
    """What a model says next at every place of the documents, in their order. `note` is told how many readings were
    done, batch by batch."""
    readings = [reading for document in documents for reading in document.readings[side]]
    start = np.concatenate([[0], np.cumsum([len(reading.cuts) for reading in readings])])
    kept = min(KEPT, len(buckets.names))
    bucket_NK = np.zeros((start[-1], kept), np.int32)
    p_NK = np.zeros((start[-1], kept), np.float32)
    budget = token_budget(lm, logit_values=CHUNK_VALUES)
    for batch in batches([len(reading.ids) for reading in readings], budget):
        ids_BT, mask_BT = padded([torch.tensor(readings[i].ids) for i in batch])
        row = torch.tensor([b for b, i in enumerate(batch) for _ in readings[i].cuts], device=lm.device)
        column = torch.tensor([cut - 1 for i in batch for cut in readings[i].cuts], device=lm.device)
        at = np.concatenate([np.arange(start[i], start[i + 1]) for i in batch])
        with torch.inference_mode():
            logits_NV = lm.logits(ids_BT, mask_BT)[row, column]
            for part in chunks(*logits_NV.shape):
                p_PK = buckets.gather(side, logits_NV[part].float().softmax(dim=1))
                best = p_PK.topk(kept, dim=1)
                bucket_NK[at[part]] = best.indices.cpu().numpy()
                p_NK[at[part]] = best.values.cpu().numpy()
        note(len(batch))
    return bucket_NK, p_NK


def divergence(a: Kept, b: Kept) -> NDArray[np.float32]:
    """(N,) Jensen-Shannon divergence in bits, 0 to 1."""
    found = np.zeros(len(a[0]), np.float32)
    for n in range(len(found)):
        strings, where = np.unique(np.concatenate([a[0][n], b[0][n]]), return_inverse=True)
        p, q = np.zeros(len(strings) + 1), np.zeros(len(strings) + 1)
        p[where[: a[0].shape[1]]] = a[1][n]
        q[where[a[0].shape[1] :]] = b[1][n]
        p[-1], q[-1] = max(0.0, 1 - p.sum()), max(0.0, 1 - q.sum())
        found[n] = (_to_mean(p, q) + _to_mean(q, p)) / 2
    return found.clip(0, 1)


def _to_mean(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL from the mean of both to p, in bits."""
    some = p > 0
    return float((p[some] * np.log2(2 * p[some] / (p[some] + q[some]))).sum())
