"""Selection by a product in bfloat16, exact all the same: which entries could be among the largest, and their values.

Rounding both factors to bfloat16 changes a product of rows x and w by at most 2^-7 ‖x‖ ‖w‖ and a little (the unit
roundoff is 2^-8; Cauchy-Schwarz). That bound is itself a product, of two norms: with one more column in each factor the
coarse product comes out as an upper bound of every pre-activation. Entries whose bound is below the smallest score that
is kept need no value; the others, somewhat more than are kept, get their own in float32.

It pays where matrices are multiplied in bfloat16 several times as fast as in float32.

Legend: B pairs, F features, K entries, R sampled pairs, Da, Db widths, Fa, Fb features that A, B has.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder.fast.bags import bag_dot
from modeldiff.crosscoder.fast.entries import Entries
from modeldiff.crosscoder.fast.products import product_into
from modeldiff.crosscoder.fast.scores import Scores, guess_bound, largest, where_above
from modeldiff.crosscoder.model import Crosscoder

# 2 u + u² with u = 2^-8, and room for the rounding of the norms themselves and of sums in float32. A's product is
# rounded once more, before B's is added to it.
_ROUNDING_A, _ROUNDING_B = 1.05 * 3 * 2**-8, 1.05 * 2 * 2**-8
# So many columns are added where one is needed: rows stay aligned.
_MORE_COLUMNS = 8
# Rows of which exact scores tell where the smallest kept one may lie; how far below that candidates begin; and by how
# much wider the next guess is when that was too high.
_SAMPLE_ROWS, _BELOW, _WIDER = 32, 0.97, 1.2


class CoarseScores(Scores):
    """Scores of a batch of which only upper bounds are made for all entries.

    `pre_BF` holds the bounds (bfloat16, without the bias); everything that it answers is exact, in float32.
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        x_a_BDa: torch.Tensor,
        x_b_BDb: torch.Tensor,
        out_BF: torch.Tensor,
        encoders: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """
        Args:
            out_BF: bfloat16, is filled with the bounds.
            encoders: `bounded_encoders` of the crosscoder, where they were made before.
        """
        self._crosscoder = crosscoder
        self._x = (x_a_BDa, x_b_BDb)
        x_a, x_b = _bounded(x_a_BDa, _ROUNDING_A), _bounded(x_b_BDb, _ROUNDING_B)
        w_a, w_b = bounded_encoders(crosscoder) if encoders is None else encoders
        product_into(out_BF, x_a, x_b, w_a, w_b, crosscoder.encoder_share)
        super().__init__(out_BF, crosscoder.b_enc, crosscoder.score_weights())
        self._known: tuple[torch.Tensor, torch.Tensor] | None = None

    def top(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Scores.top`."""
        score_RF, margin = self._sampled(), 1.0
        while True:
            bound = _BELOW * guess_bound(score_RF, len(self.pre_BF), margin * count)
            flat_K, score_K = self.above(bound)
            if len(flat_K) >= count or bound == 0:
                return largest(flat_K, score_K, count)
            margin *= _WIDER

    def above(self, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Scores.above`: exact, for no score is above its upper bound."""
        flat_K = self._candidates(bound)
        pre_K = self._exact(flat_K)
        self._known = (flat_K, pre_K)
        score_K = self._weighted(pre_K, flat_K)
        over_K = score_K > bound
        return flat_K[over_K], score_K[over_K]

    def pre(self, flat_K: torch.Tensor) -> torch.Tensor:
        """As `Scores.pre`."""
        if self._known is None:
            return self._exact(flat_K)
        known_K, pre_K = self._known
        places = torch.searchsorted(known_K, flat_K)
        return pre_K[places]

    def _sampled(self) -> torch.Tensor:
        """Exact scores (R, F) of evenly spaced pairs."""
        crosscoder = self._crosscoder
        x_a, x_b = (x_BD[:: max(1, len(self.pre_BF) // _SAMPLE_ROWS)] for x_BD in self._x)
        score_RF = x_a.new_empty(len(x_a), crosscoder.n_features)
        product_into(score_RF, x_a, x_b, crosscoder.w_enc_a, crosscoder.w_enc_b, crosscoder.encoder_share)
        score_RF += crosscoder.b_enc
        return score_RF if self.weight_F is None else score_RF * self.weight_F

    def _candidates(self, bound: float) -> torch.Tensor:
        """Flat indices, ascending, of the entries whose upper bound allows a score above `bound`."""
        limit_F = self.limit(bound)
        # The bounds were rounded to bfloat16 at last. Of numbers that are not negative, the order is that of their
        # bits, and a negative one has negative bits: integers are compared in half the time.
        limit_F = limit_F - 2**-7 * limit_F.abs()
        bits_F = limit_F.bfloat16().view(torch.int16)
        bits_F = torch.where(limit_F < 0, torch.iinfo(torch.int16).min, bits_F)
        return where_above(self.pre_BF.view(torch.int16), bits_F)

    def _exact(self, flat_K: torch.Tensor) -> torch.Tensor:
        """Pre-activations, bias included, in float32."""
        crosscoder = self._crosscoder
        entries = Entries(flat_K, len(self.pre_BF), crosscoder.n_features)
        pre_K = torch.zeros(len(flat_K), device=flat_K.device)
        if crosscoder.n_features <= len(self.pre_BF):
            return self._exact_by_pair(entries, pre_K)
        # What is gathered are pairs, the smaller part of both.
        for side, x_BD, w_enc in zip("ab", self._x, (crosscoder.w_enc_a, crosscoder.w_enc_b), strict=True):
            found, bags = entries.of_features(crosscoder.sees(side))
            pre_K[found] += bag_dot(w_enc, x_BD, bags)
        if crosscoder.encoder_share != 1:
            pre_K[entries.of_features(crosscoder.slices["shared"])[0]] *= crosscoder.encoder_share
        pre_K += crosscoder.b_enc[entries.feature_K]
        return pre_K[entries.by_pair_K]

    def _exact_by_pair(self, entries: Entries, pre_K: torch.Tensor) -> torch.Tensor:
        """The same of zeros `pre_K`, in the order that the entries are listed in: nothing is sorted."""
        crosscoder, column_K = self._crosscoder, entries.column_K
        for side, x_BD, w_enc in zip("ab", self._x, (crosscoder.w_enc_a, crosscoder.w_enc_b), strict=True):
            indices, bags = entries.of_pairs(crosscoder.sees(side))
            pre_K[indices] += bag_dot(x_BD, w_enc, bags)
        if crosscoder.encoder_share != 1:
            shared = crosscoder.slices["shared"]
            pre_K[(column_K >= shared.start) & (column_K < shared.stop)] *= crosscoder.encoder_share
        return pre_K.add_(crosscoder.b_enc.index_select(0, column_K))


def bounded_encoders(crosscoder: Crosscoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Both models' encoders as the coarse product takes them."""
    return _bounded(crosscoder.w_enc_a, 1.0), _bounded(crosscoder.w_enc_b, 1.0)


def _bounded(rows_ND: torch.Tensor, factor: float) -> torch.Tensor:
    """Rows in bfloat16 with their norm, times a factor and rounded up, as one more column (and columns of 0)."""
    out = torch.zeros(len(rows_ND), rows_ND.shape[1] + _MORE_COLUMNS, dtype=torch.bfloat16, device=rows_ND.device)
    out[:, : rows_ND.shape[1]] = rows_ND
    out[:, rows_ND.shape[1]] = (1 + 2**-7) * factor * rows_ND.norm(dim=1)
    return out
