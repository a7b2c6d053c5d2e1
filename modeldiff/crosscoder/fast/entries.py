"""The kept entries of a sparse code, in the two orders that its products need: by feature and by pair.

A code has K entries among B x F. What is summed over a feature's entries (gradients of weights) wants them feature by
feature, what is summed over a pair's (reconstructions) pair by pair. Values come in the second order, as they were
selected; their gradients in the first.

Legend: K kept entries, B pairs, F features, Fm features that one model has; B1 = B + 1, F1 = F + 1.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array

from modeldiff.crosscoder.fast.bags import Bags
from modeldiff.crosscoder.fast.flat import places_of, rows_and_columns


class Kept:
    """Entries of a code. Of one feature, they are in the order of the pairs; of one pair, in that of the features.

    Attributes:
        pairs: B.
        features: F.
        row_K, column_K: the entry's pair and feature, pair by pair.

    All numbers are int32 on the CPU, int64 elsewhere.
    """

    def __init__(self, flat_K: torch.Tensor, pairs: int, features: int) -> None:
        """`flat_K`: int64, ascending: row * F + column of each entry."""
        self.pairs, self.features = pairs, features
        self._of_features: dict[tuple[int, int], tuple[slice, Bags]] = {}
        self.row_K, self.column_K = rows_and_columns(flat_K, features)

    # The order by feature is made when it is first asked for: to sort takes as long as some products.

    @cached_property
    def by_feature_K(self) -> torch.Tensor:
        """Values listed pair by pair, taken at these places, are feature by feature."""
        return _by_column(self.row_K, self.column_K, self.pairs, self.features)

    @cached_property
    def pair_K(self) -> torch.Tensor:
        """The entry's pair, feature by feature."""
        return self.row_K.index_select(0, self.by_feature_K)

    @cached_property
    def feature_K(self) -> torch.Tensor:
        """The entry's feature, feature by feature."""
        return self.column_K.index_select(0, self.by_feature_K)

    @cached_property
    def start_F1(self) -> torch.Tensor:
        """Feature i holds the entries from start_F1[i] to start_F1[i + 1] of those listed feature by feature."""
        return _starts(self.feature_K, self.features)

    @cached_property
    def by_pair_K(self) -> torch.Tensor:
        """The way back: values listed feature by feature, taken at these places, are pair by pair."""
        by_pair_K = torch.empty_like(self.by_feature_K)
        by_pair_K[self.by_feature_K] = torch.arange(len(by_pair_K), dtype=by_pair_K.dtype, device=by_pair_K.device)
        return by_pair_K

    @cached_property
    def start_B1(self) -> torch.Tensor:
        """Pair i holds the entries from start_B1[i] to start_B1[i + 1] of those listed pair by pair."""
        return _starts(self.row_K, self.pairs)

    def of_features(self, seen: slice) -> tuple[slice, Bags]:
        """The entries of neighbouring features among those listed feature by feature (their slice), and bags of them: a
        bag is a feature, an index a pair."""
        key = (seen.start, seen.stop)
        if key not in self._of_features:  # encoder and decoder ask for the same ones
            self._of_features[key] = self._bags_of(seen)
        return self._of_features[key]

    def _bags_of(self, seen: slice) -> tuple[slice, Bags]:
        if seen.start == 0 and seen.stop == self.features:
            return slice(0, len(self.pair_K)), Bags(self.pair_K, self.feature_K, self.start_F1)
        start_Fm1 = self.start_F1[seen.start : seen.stop + 1]
        entries = slice(int(start_Fm1[0]), int(start_Fm1[-1]))
        feature_K = _counted_from(seen.start, self.feature_K[entries])
        return entries, Bags(self.pair_K[entries], feature_K, start_Fm1 - entries.start)

    def of_pairs(self, seen: slice) -> tuple[torch.Tensor | None, Bags]:
        """The places of the entries of neighbouring features among those listed pair by pair (None: all of them), and
        bags of them: a bag is a pair, an index a feature, counted from the first of them."""
        if seen.start == 0 and seen.stop == self.features:
            return None, Bags(self.column_K, self.row_K, self.start_B1)
        places = places_of((self.column_K >= seen.start) & (self.column_K < seen.stop)).to(self.column_K.dtype)
        rows_K, columns_K = self.row_K.index_select(0, places), self.column_K.index_select(0, places)
        return places, Bags(_counted_from(seen.start, columns_K), rows_K, _starts(rows_K, self.pairs))

    def dense(self, value_K: torch.Tensor) -> torch.Tensor:
        """(B, F) with the values, listed pair by pair, at their places and 0 elsewhere."""
        out_BF = value_K.new_zeros(self.pairs, self.features)
        out_BF[self.row_K, self.column_K] = value_K
        return out_BF


def _counted_from(first: int, number_K: torch.Tensor) -> torch.Tensor:
    return number_K - first if first else number_K


def _starts(number_K: torch.Tensor, count: int) -> torch.Tensor:
    """Of ascending numbers below `count`: where each begins, and where the last one ends."""
    numbers = torch.arange(count + 1, dtype=number_K.dtype, device=number_K.device)
    return torch.searchsorted(number_K, numbers, out_int32=number_K.dtype == torch.int32)


def _by_column(rows_K: torch.Tensor, columns_K: torch.Tensor, pairs: int, features: int) -> torch.Tensor:
    """The stable order by column of entries that are sorted by row."""
    if rows_K.device.type != "cpu":
        return columns_K.int().sort(stable=True).indices
    if features <= 1 << 16:
        # numpy sorts numbers of 16 bits by their digits: 0.6 ms for 131,072 entries, where torch takes 4 to 190.
        return torch.from_numpy(columns_K.numpy().astype(np.uint16).argsort(kind="stable").astype(np.int32))
    # scipy's transposition is a counting sort.
    numbers_K = np.arange(len(rows_K), dtype=np.int32)
    starts = _starts(rows_K, pairs).numpy()
    transposed = csr_array((numbers_K, columns_K.numpy(), starts), shape=(pairs, features)).tocsc()
    return torch.from_numpy(transposed.data)
