"""The active entries of pairs at inference: what `Crosscoder.encode` keeps, without a dense code.

Legend: B pairs, F features, K active entries, Da, Db widths.
"""

from __future__ import annotations

import threading

import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.coarse import CoarseScores, bounded_encoders
from modeldiff.crosscoder.fast.products import product_into
from modeldiff.crosscoder.fast.scores import Scores

# Of the matrix of products that is held at once.
_PRODUCT_BYTES = 32 << 20


class ActiveEntries:
    """Finds them, pair by pair, with one dense product into memory that is used again and again, in any thread.

    Args:
        coarse: the product is one of upper bounds in bfloat16, and only entries that these allow get a value
            (coarse.py); they are the same entries. None: where that is faster.
    """

    def __init__(self, crosscoder: Crosscoder, *, coarse: bool | None = None) -> None:
        self._crosscoder = crosscoder
        device = crosscoder.b_enc.device
        self._coarse = multiplies_bfloat16(device) if coarse is None else coarse
        self._dtype = torch.bfloat16 if self._coarse else torch.float32
        self._rows = max(1, _PRODUCT_BYTES // (self._dtype.itemsize * crosscoder.n_features))
        self._rooms = threading.local()
        self._encoders: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def of(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(flat indices (K,) int64, ascending; activations (K,) float32) of raw pairs."""
        features = self._crosscoder.n_features
        flats, values = [], []
        for start in range(0, len(x_a_BDa), self._rows):
            part = slice(start, start + self._rows)
            flat_K, value_K = self._of_some(*self._crosscoder.normalise(x_a_BDa[part], x_b_BDb[part]))
            flats.append(flat_K + start * features)
            values.append(value_K)
        return torch.cat(flats), torch.cat(values)

    def _of_some(self, x_a: torch.Tensor, x_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        crosscoder = self._crosscoder
        config = crosscoder.config
        room_BF = getattr(self._rooms, "product_BF", None)  # of this thread
        if room_BF is None or len(room_BF) < len(x_a):
            room_BF = self._rooms.product_BF = torch.empty(
                len(x_a), config.n_features, dtype=self._dtype, device=x_a.device
            )
        out_BF = room_BF[: len(x_a)]
        if self._coarse:
            self._encoders = self._encoders or bounded_encoders(crosscoder)
            scores: Scores = CoarseScores(crosscoder, x_a, x_b, out_BF, self._encoders)
        else:
            product_into(out_BF, x_a, x_b, crosscoder.w_enc_a, crosscoder.w_enc_b, crosscoder.encoder_share)
            scores = Scores(out_BF, crosscoder.b_enc, crosscoder.score_weights())
        if not config.n_designated:
            flat_K, score_K = scores.above(config.threshold)
        else:
            flat_K, score_K = scores.above(min(config.threshold, config.threshold_designated))
            over_K = score_K > crosscoder.thresholds()[flat_K % config.n_features]
            flat_K, score_K = flat_K[over_K], score_K[over_K]
        return flat_K, score_K if scores.weight_F is None else scores.pre(flat_K)


def multiplies_bfloat16(device: torch.device) -> bool:
    """True for a CPU that multiplies matrices in bfloat16 about twice as fast as in float32."""
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return device.type == "cpu" and any(supported() for supported in known if supported)
