"""The active entries of pairs at inference: what `Crosscoder.encode` keeps, without a dense code.

Legend: B pairs, F features, K active entries, Da, Db widths.
"""

from __future__ import annotations

import threading

import torch

from modeldiff.crosscoder.fast.topk import Scores, rows_and_columns
from modeldiff.crosscoder.model import Crosscoder, encode_into

# Of the matrix of products that is held at once.
_PRODUCT_BYTES = 32 << 20


class ActiveEntries:
    """Finds them, pair by pair, with one dense product into memory that is used again and again, in any thread."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        self._rows = max(1, _PRODUCT_BYTES // (4 * crosscoder.n_features))
        self._of_thread = threading.local()

    @torch.no_grad()
    def of(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(flat indices (K,) int64, ascending; activations (K,) float32) of raw pairs."""
        flats, values = [], []
        for start in range(0, len(x_a_BDa), self._rows):
            part = slice(start, start + self._rows)
            flat_K, value_K = self._of_some(*self._crosscoder.normalise(x_a_BDa[part], x_b_BDb[part]))
            flats.append(flat_K + start * self._crosscoder.n_features)
            values.append(value_K)
        return torch.cat(flats), torch.cat(values)

    def _of_some(self, x_a: torch.Tensor, x_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        crosscoder, product_BF = self._crosscoder, getattr(self._of_thread, "product_BF", None)
        if product_BF is None or len(product_BF) < len(x_a):
            product_BF = torch.empty(len(x_a), crosscoder.n_features, device=x_a.device)
            self._of_thread.product_BF = product_BF
        out_BF = product_BF[: len(x_a)]
        encode_into(out_BF, x_a, x_b, crosscoder.w_enc_a, crosscoder.w_enc_b, share=crosscoder.encoder_share)
        scores = Scores(out_BF, crosscoder.b_enc, crosscoder.score_weights())
        threshold_F = crosscoder.thresholds()
        flat_K, score_K = scores.above(float(threshold_F.min()))
        if crosscoder.config.n_designated:
            over_K = score_K > threshold_F[rows_and_columns(flat_K, crosscoder.n_features)[1]]
            flat_K, score_K = flat_K[over_K], score_K[over_K]
        return flat_K, score_K if scores.weight_F is None else scores.pre(flat_K)
