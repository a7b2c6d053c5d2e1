"""The active entries of pairs at inference: what `Crosscoder.encode` keeps, without a dense code.

Legend: B pairs, F features, K active entries, Da, Db widths.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modeldiff.crosscoder.fast.sparse import Entries, bag_dot
from modeldiff.crosscoder.fast.topk import Scores, indices_of, rows_and_columns
from modeldiff.crosscoder.model import Both, Crosscoder, encode_into
from modeldiff.sides import SIDES

# Of the matrix of products that is held at once: on a CPU it stays in the cache, a GPU wants to be busy.
_PRODUCT_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}
# A float32 product on a GPU may cut its factors to 10 bits behind the point (TF32), and its sums after every addition:
# errors as shares of the factors' norms, for both factors together, and for each value that is added.
_FACTORS, _ADDITION = 2.0**-9, 2.0**-23
_changing = threading.Lock()


class ActiveEntries:
    """Finds them, pair by pair, with one dense product into memory that is used again and again, in any thread.

    On CUDA the product is a coarse one, several times as fast, which says where an entry may be active. Whether it is,
    and its activation, follow from float32 products at these places alone: the same entries, up to float32's rounding.
    """

    def __init__(self, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        device = crosscoder.b_enc.device.type
        self._rows = max(1, _PRODUCT_BYTES.get(device, _PRODUCT_BYTES["cpu"]) // (4 * crosscoder.n_features))
        self._slack_F = {side: _slack(crosscoder, side) for side in SIDES} if device == "cuda" else None
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
        crosscoder = self._crosscoder
        weight_F, threshold_F = crosscoder.score_weights(), crosscoder.thresholds()
        scores = Scores(self._product(x_a, x_b), crosscoder.b_enc, weight_F)
        flat_K, score_K = scores.above(float(threshold_F.min()))
        if self._slack_F is None and not crosscoder.config.n_designated:
            return flat_K, score_K if weight_F is None else scores.pre(flat_K)
        feature_K = rows_and_columns(flat_K, crosscoder.n_features)[1]
        pre_K = scores.pre(flat_K) if self._slack_F is None else self._exact((x_a, x_b), flat_K)
        score_K = pre_K if weight_F is None else pre_K * weight_F[feature_K]
        at = indices_of(score_K > threshold_F[feature_K])
        return flat_K.index_select(0, at), pre_K.index_select(0, at)

    def _product(self, x_a: torch.Tensor, x_b: torch.Tensor) -> torch.Tensor:
        """(B, F) the encoder's product; on CUDA, what it is at most."""
        crosscoder, product_BF = self._crosscoder, getattr(self._of_thread, "product_BF", None)
        if product_BF is None or len(product_BF) < len(x_a):
            product_BF = torch.empty(len(x_a), crosscoder.n_features, device=x_a.device)
            self._of_thread.product_BF = product_BF
        out_BF = product_BF[: len(x_a)]
        with _coarse(self._slack_F is not None):
            encode_into(out_BF, x_a, x_b, crosscoder.w_enc_a, crosscoder.w_enc_b, share=crosscoder.encoder_share)
        for side, x_BD in zip(SIDES, (x_a, x_b), strict=True):
            if self._slack_F is not None:
                out_BF[:, crosscoder.sees(side)].addr_(x_BD.norm(dim=1), self._slack_F[side])
        return out_BF

    def _exact(self, x: Both, flat_K: torch.Tensor) -> torch.Tensor:
        """(K,) pre-activations of some entries, from products in float32."""
        crosscoder = self._crosscoder
        entries = Entries(flat_K, len(x[0]), crosscoder.n_features)
        bags, by_feature_K = entries.bags, entries.by_feature_K
        product_K = x[0].new_zeros(len(flat_K))
        for side, x_BD in zip(SIDES, x, strict=True):
            bag_dot(crosscoder.encoder(side), x_BD, bags, some=crosscoder.sees(side), dot_K=product_K)
        feature_K, shared = bags.bag_K, crosscoder.slices["shared"]
        is_shared_K = (feature_K >= shared.start) & (feature_K < shared.stop)
        product_K = torch.where(is_shared_K, product_K * crosscoder.encoder_share, product_K)
        pre_K = torch.empty_like(product_K)
        pre_K[by_feature_K] = product_K + crosscoder.b_enc[feature_K]
        return pre_K


@torch.no_grad()
def _slack(crosscoder: Crosscoder, side: str) -> torch.Tensor:
    """(Fm,) by how much a coarse product with activations of norm 1 may be wrong, for each feature that a model has."""
    w_FD, shared = crosscoder.encoder(side), crosscoder.slices["shared"]
    slack_F = w_FD.norm(dim=1) * (_FACTORS + _ADDITION * w_FD.shape[1])
    first = crosscoder.sees(side).start
    slack_F[shared.start - first : shared.stop - first] *= crosscoder.encoder_share
    return slack_F


@contextmanager
def _coarse(wanted: bool) -> Iterator[None]:
    """Where it is `wanted`, products in float32 may be coarse ones in here: a setting of the whole process, so one
    thread at a time."""
    if not wanted:
        yield
        return
    with _changing:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
