"""Which entries of a batch are active: BatchTopK (paper 2.2, 12.4), exact, without a matrix of scores.

BatchTopK keeps the k * B largest scores of the flattened batch, over the whole dictionary jointly. A score is (pre +
bias) times a weight per feature (`Crosscoder.score_weights`); the value kept is the activation itself.

A bound is guessed from a few pairs such that few entries exceed it, those are looked up, and the largest of them are
taken. When the guess falls short, another one is made with a wider margin: the selection is exact all the same.
On the CPU numpy looks up, which is several times as fast there as torch.

Legend: B pairs, F features, K entries, R sampled pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

# Rows looked at to guess a bound that leaves few candidates, and how many more candidates than K the guess aims at.
_SAMPLE_ROWS, _MARGIN = 32, 1.3
# Bytes of a mask made at once on the CPU.
_MASK_BYTES = 1 << 20
# Of a mask whose true ones are counted in 32 bits by some releases of CUDA's nonzero.
_MOST_ENTRIES = 1 << 30
# Up to this size (1 MiB) a matrix of scores is made after all: it takes fewer operations than looking them up.
_FEW_SCORES = 1 << 18
Smallest = tuple[torch.Tensor | None, torch.Tensor | None]
"""0-d: the smallest score selected of the features, and of the designated ones; None: none was."""


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
        rows_K, columns_K = rows_and_columns(flat_K, self.pre_BF.shape[1])
        pre_K = self.pre_BF.view(-1).index_select(0, flat_K) if whole else self.pre_BF[rows_K, columns_K]
        return pre_K if self.bias_F is None else pre_K.add_(self.bias_F.index_select(0, columns_K))

    def at(self, flat_K: torch.Tensor) -> torch.Tensor:
        pre_K = self.pre(flat_K)
        if self.weight_F is None:
            return pre_K
        return pre_K * self.weight_F.index_select(0, rows_and_columns(flat_K, self.pre_BF.shape[1])[1])

    def top(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(flat indices, ascending, of the `count` largest positive scores, or all of them; these scores). Of scores
        equal to the smallest kept one, those with the lowest index are kept."""
        if count <= 0 or self.pre_BF.numel() == 0:
            return torch.zeros(0, dtype=torch.long, device=self.pre_BF.device), self.pre_BF.new_zeros(0)
        if self.pre_BF.numel() <= _FEW_SCORES and not (self.bias_F is None and self.weight_F is None):
            return Scores(self.rows(1)).top(count)
        # Nothing is taken from earlier batches: a resumed run makes the same guesses.
        score_RF, margin = self.rows(max(1, len(self.pre_BF) // _SAMPLE_ROWS)), _MARGIN
        while True:
            wanted = int(margin * count * len(score_RF) / len(self.pre_BF)) + 1
            bounded = wanted < score_RF.numel()
            bound = _nth_largest(score_RF.reshape(-1), wanted).clamp_min(0.0) if bounded else score_RF.new_zeros(())
            flat_K, score_K = self._near(bound)
            if len(flat_K) >= count:
                found = largest(flat_K, score_K, count)
                if found[1].min() > bound:  # beside the look-up, all that a GPU is waited for
                    return found
            if bound == 0:
                over_K = score_K > bound
                return flat_K[over_K], score_K[over_K]
            # The sampled pairs had larger scores than others. By small steps: too many candidates take memory.
            margin *= _MARGIN

    def topk(self, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `top`, but of the scores only the smallest one (0-d), if there is any."""
        flat_K, score_K = self.top(count)
        return flat_K, score_K.min() if len(score_K) else None

    def above(self, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(flat indices, ascending, of the scores above a bound of at least 0; these scores)."""
        flat_K, score_K = self._near(bound)
        over_K = score_K > bound
        return flat_K[over_K], score_K[over_K]

    def _near(self, bound: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `above`, and some that are below the bound by a few roundings."""
        plain = self.bias_F is None and self.weight_F is None
        flat_K = _where_above(self.pre_BF, bound if plain else self._limit(bound))
        return flat_K, self.at(flat_K)

    def _limit(self, bound: float | torch.Tensor) -> torch.Tensor:
        """(F,) what a product must exceed for its score to exceed the bound, or a few roundings less."""
        limit_F = self.pre_BF.new_zeros(self.pre_BF.shape[1]) + bound
        if self.weight_F is not None:
            # A weight of 0 gives infinity or, with a bound of 0, no number: nothing exceeds either.
            limit_F = limit_F / self.weight_F
        slack_F = limit_F.abs()
        if self.bias_F is not None:
            limit_F, slack_F = limit_F - self.bias_F, slack_F + self.bias_F.abs()
        return limit_F - 4 * torch.finfo(limit_F.dtype).eps * slack_F


def largest(flat_K: torch.Tensor, score_K: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest scores and their indices, in the given order; the first ones of equal scores."""
    if len(flat_K) <= count:
        return flat_K, score_K
    if score_K.device.type != "cpu":  # sorted twice, but nothing waits for the device
        kept_K = score_K.sort(descending=True, stable=True).indices[:count].sort().values
    else:
        smallest = _nth_largest(score_K, count)
        keep_K = score_K >= smallest
        kept_K = indices_of(keep_K)
        surplus = len(kept_K) - count
        if surplus:
            keep_K[indices_of(score_K == smallest)[-surplus:]] = False
            kept_K = indices_of(keep_K)
    return flat_K.index_select(0, kept_K), score_K.index_select(0, kept_K)


def _nth_largest(value_N: torch.Tensor, n: int) -> torch.Tensor:
    """0-d; n counts from 1. On the CPU numpy is ten times as fast as torch."""
    if value_N.device.type != "cpu":
        # Not kthvalue: on CUDA a single block would do all of it.
        return value_N.topk(n, sorted=False).values.min()
    return torch.as_tensor(np.partition(value_N.numpy(), len(value_N) - n)[len(value_N) - n])


def _where_above(pre_BF: torch.Tensor, limit_F: torch.Tensor | float) -> torch.Tensor:
    """Flat indices, ascending, of the entries above a limit, or each column's limit, of the same dtype."""
    if pre_BF.device.type != "cpu":
        return indices_of(pre_BF > limit_F)
    # Piece by piece the mask stays in the cache; and a row against a matrix numpy compares faster than torch, too.
    limit = limit_F.numpy() if isinstance(limit_F, torch.Tensor) else limit_F
    pre, columns = pre_BF.numpy(), pre_BF.shape[1]
    step = max(1, _MASK_BYTES // columns)
    found = [np.flatnonzero(pre[at : at + step] > limit) + at * columns for at in range(0, len(pre), step)]
    return torch.from_numpy(np.concatenate(found))


def indices_of(mask: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """Flat indices, int64, ascending, of the true ones; `count`: how many these are. Without it a GPU is waited for."""
    if mask.device.type != "cpu":
        flat = mask.reshape(-1)
        if count is not None:
            return flat.byte().sort(descending=True, stable=True).indices[:count]
        found = [part.nonzero()[:, 0] + at * _MOST_ENTRIES for at, part in enumerate(flat.split(_MOST_ENTRIES))]
        return found[0] if len(found) == 1 else torch.cat(found)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def rows_and_columns(flat_K: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows and columns of flat indices, int64, in a matrix of so many columns; int32 on the CPU, to save memory."""
    if flat_K.device.type != "cpu":
        rows_K = flat_K // columns
        return rows_K, flat_K - rows_K * columns
    flat = flat_K.numpy()
    if flat.size and flat.max() <= np.iinfo(np.int32).max:
        flat = flat.astype(np.int32)
    rows = flat // columns  # numpy divides several times as fast as it finds remainders
    within = flat - rows * columns
    return torch.from_numpy(rows.astype(np.int32, copy=False)), torch.from_numpy(within.astype(np.int32, copy=False))
