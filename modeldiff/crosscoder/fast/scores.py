"""BatchTopK, exact, without a matrix of scores: the largest (pre + bias) * weight of a batch.

A bound is guessed from a few pairs such that few entries exceed it, those are looked up, and the largest of them are
taken. When the guess falls short, another one is made with a wider margin: the selection is exact all the same.

Legend: B pairs, F features, K number of entries, R sampled pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from modeldiff.crosscoder.fast.flat import columns_of, flatnonzero, places_of, rows_and_columns

# Rows looked at to guess a bound that leaves few candidates, and how many more candidates than K the guess aims at.
_SAMPLE_ROWS = 32
_MARGIN = 1.3
# Bytes of a mask made at once on the CPU.
_MASK_BYTES = 1 << 20
# Up to this size (1 MiB) a matrix of scores is made after all: it takes fewer operations than looking them up.
_FEW_SCORES = 1 << 18


@dataclass(frozen=True)
class Scores:
    """Scores (pre + bias) * weight of a batch, of which no large matrix is made: only single entries and a few rows.

    Attributes:
        pre_BF: float32, products of the encoder; may be a view of some columns.
        bias_F: added to them; None: already in them.
        weight_F: see `score_weights`; None stands for ones.
    """

    pre_BF: torch.Tensor
    bias_F: torch.Tensor | None = None
    weight_F: torch.Tensor | None = None

    def columns(self, features: slice) -> Scores:
        """The scores of some features."""
        bias_F, weight_F = (None if part is None else part[features] for part in (self.bias_F, self.weight_F))
        return Scores(self.pre_BF[:, features], bias_F, weight_F)

    def rows(self, stride: int) -> torch.Tensor:
        """Scores of every `stride`-th pair, all features."""
        score_RF = self.pre_BF[::stride]
        score_RF = score_RF if self.bias_F is None else score_RF + self.bias_F
        return score_RF if self.weight_F is None else score_RF * self.weight_F

    def pre(self, flat_K: torch.Tensor) -> torch.Tensor:
        """Pre-activations, bias included, at flat indices."""
        whole = self.pre_BF.is_contiguous()
        if whole and self.bias_F is None:
            return self.pre_BF.view(-1).index_select(0, flat_K)
        if whole:
            columns_K = columns_of(flat_K, self.pre_BF.shape[1])
            pre_K = self.pre_BF.view(-1).index_select(0, flat_K)
        else:
            rows_K, columns_K = rows_and_columns(flat_K, self.pre_BF.shape[1])
            pre_K = self.pre_BF[rows_K, columns_K]
        return pre_K if self.bias_F is None else pre_K.add_(self.bias_F.index_select(0, columns_K))

    def at(self, flat_K: torch.Tensor) -> torch.Tensor:
        """Scores at flat indices."""
        return self._weighted(self.pre(flat_K), flat_K)

    def _weighted(self, pre_K: torch.Tensor, flat_K: torch.Tensor) -> torch.Tensor:
        if self.weight_F is None:
            return pre_K
        return pre_K * self.weight_F.index_select(0, columns_of(flat_K, self.pre_BF.shape[1]))

    def top(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `batch_topk`; `count` is above 0, and there are entries."""
        if self.pre_BF.numel() <= _FEW_SCORES and not (self.bias_F is None and self.weight_F is None):
            return Scores(self.rows(1)).top(count)
        # Nothing is taken from earlier batches: a resumed run makes the same guesses.
        score_RF, margin = self.rows(max(1, len(self.pre_BF) // _SAMPLE_ROWS)), _MARGIN
        while True:
            bound = guess_bound(score_RF, len(self.pre_BF), margin * count)
            flat_K, score_K = self._near(bound)
            over_K = score_K > bound
            if int(over_K.sum()) >= count:
                return largest(flat_K, score_K, count)
            if bound == 0:
                return flat_K[over_K], score_K[over_K]
            # The sampled pairs had larger scores than others. By small steps: too many candidates take memory.
            margin *= _MARGIN

    def above(self, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(flat indices, ascending, of the scores above a bound of at least 0; these scores)."""
        flat_K, score_K = self._near(bound)
        over_K = score_K > bound
        return (flat_K, score_K) if bool(over_K.all()) else (flat_K[over_K], score_K[over_K])

    def _near(self, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As `above`, and some that are below the bound by a few roundings."""
        plain = self.bias_F is None and self.weight_F is None
        flat_K = where_above(self.pre_BF, bound if plain else self.limit(bound))
        return flat_K, self.at(flat_K)

    def limit(self, bound: float) -> torch.Tensor:
        """(F,) what a product must exceed for its score to exceed the bound, or a few roundings less."""
        limit_F = torch.full((self.pre_BF.shape[1],), bound, device=self.pre_BF.device)
        if self.weight_F is not None:
            # A weight of 0 gives infinity or, with a bound of 0, no number: nothing exceeds either.
            limit_F = limit_F / self.weight_F
        slack_F = limit_F.abs()
        if self.bias_F is not None:
            limit_F, slack_F = limit_F - self.bias_F, slack_F + self.bias_F.abs()
        return limit_F - 4 * torch.finfo(limit_F.dtype).eps * slack_F


@torch.no_grad()
def batch_topk(scores: Scores, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(flat indices, ascending, of the `count` largest positive scores; these scores); of all positive ones if there
    are fewer.

    Exact: of scores equal to the smallest kept one, those with the lowest index are kept.
    """
    if count <= 0 or scores.pre_BF.numel() == 0:
        return _nothing(scores.pre_BF)
    return scores.top(count)


def largest(flat_K: torch.Tensor, score_K: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest scores and their indices, in the given order; the first ones of equal scores."""
    if len(flat_K) <= count:
        return flat_K, score_K
    smallest = nth_largest(score_K, count)
    keep_K = score_K >= smallest
    places_K = places_of(keep_K)
    surplus = len(places_K) - count
    if surplus:
        keep_K[places_of(score_K == smallest)[-surplus:]] = False
        places_K = places_of(keep_K)
    return flat_K.index_select(0, places_K), score_K.index_select(0, places_K)


def _nothing(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(0, dtype=torch.long, device=like.device), torch.zeros(0, device=like.device)


def guess_bound(score_RF: torch.Tensor, rows: int, wanted: float) -> float:
    """A guess of a score that about `wanted` scores of all pairs exceed; never negative.

    Args:
        score_RF: scores of R evenly spaced pairs.
        rows: number of all pairs.
    """
    n = int(wanted * len(score_RF) / rows) + 1
    return max(0.0, nth_largest(score_RF.reshape(-1), n)) if n < score_RF.numel() else 0.0


def nth_largest(value_N: torch.Tensor, n: int) -> float:
    """The n-th largest value; n counts from 1."""
    if value_N.device.type != "cpu":
        # Not kthvalue: on CUDA a single block would do all of it.
        return float(value_N.topk(n, sorted=False).values.min())
    # Ten times as fast as torch there.
    return float(np.partition(value_N.numpy(), len(value_N) - n)[len(value_N) - n])


def where_above(pre_BF: torch.Tensor, limit_F: torch.Tensor | float) -> torch.Tensor:
    """Flat indices, ascending, of the entries above a limit, or each column's limit, of the same dtype."""
    if pre_BF.device.type != "cpu":
        return places_of(pre_BF > limit_F)
    # Piece by piece the mask stays in the cache; and a row against a matrix numpy compares faster than torch, too.
    limit = limit_F.numpy() if isinstance(limit_F, torch.Tensor) else limit_F
    pre, step = pre_BF.numpy(), max(1, _MASK_BYTES // pre_BF.shape[1])
    found = [
        flatnonzero(pre[start : start + step] > limit) + start * pre_BF.shape[1] for start in range(0, len(pre), step)
    ]
    return torch.from_numpy(found[0] if len(found) == 1 else np.concatenate(found))
