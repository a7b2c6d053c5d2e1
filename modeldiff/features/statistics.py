"""Running statistics of every feature over the pairs: how often it fires, how strongly, and on which text source.

Legend: F features, S text sources, B pairs of a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modeldiff.features.codes import SparseCodes

Arrays = dict[str, NDArray[np.generic]]


class FeatureStatistics:
    """Sums that one pass accumulates, in float64 and int64.

    Attributes:
        pairs: pairs counted; outliers: pairs left out.
        count_F: firings; sum_F, sum_squares_F: of the activations; max_F (float32).
        source_pairs_S: pairs counted per source; source_count_SF, source_sum_SF: firings and activation mass per
        source.
    """

    def __init__(self, n_features: int, n_sources: int) -> None:
        self.pairs = 0
        self.outliers = 0
        self.count_F = np.zeros(n_features, np.int64)
        self.sum_F = np.zeros(n_features)
        self.sum_squares_F = np.zeros(n_features)
        self.max_F = np.zeros(n_features, np.float32)
        self.source_pairs_S = np.zeros(n_sources, np.int64)
        self.source_count_SF = np.zeros((n_sources, n_features), np.int64)
        self.source_sum_SF = np.zeros((n_sources, n_features))

    def update(self, codes: SparseCodes, kept_B: NDArray[np.bool_], source_B: NDArray[np.int64] | None) -> None:
        """Take a block in.

        Args:
            codes: its activations.
            kept_B: False for pairs that are left out.
            source_B: index of the text source of each pair; None without texts.
        """
        self.pairs += int(kept_B.sum())
        self.outliers += int((~kept_B).sum())
        features = len(self.count_F)
        value = codes.value.astype(np.float64)
        self.count_F += np.bincount(codes.feature, minlength=features)
        self.sum_F += np.bincount(codes.feature, value, features)
        self.sum_squares_F += np.bincount(codes.feature, value * value, features)
        np.maximum.at(self.max_F, codes.feature, codes.value)
        if source_B is not None:
            self.source_pairs_S += np.bincount(source_B[kept_B], minlength=len(self.source_pairs_S))
            # Blocks have few sources, however many there are in all.
            present, source = np.unique(source_B, return_inverse=True)
            flat, size = source[codes.row] * features + codes.feature, len(present) * features
            self.source_count_SF[present] += np.bincount(flat, minlength=size).reshape(-1, features)
            self.source_sum_SF[present] += np.bincount(flat, value, size).reshape(-1, features)

    def state(self) -> Arrays:
        """Everything needed to go on later, for `from_state`."""
        totals = {"totals": np.array([self.pairs, self.outliers], np.int64)}
        return {**{name: getattr(self, name) for name in _ARRAYS}, **totals}

    @classmethod
    def from_state(cls, state: Arrays) -> FeatureStatistics:
        n_sources, n_features = state["source_sum_SF"].shape
        statistics = cls(n_features, n_sources)
        for name in _ARRAYS:
            setattr(statistics, name, state[name].copy())
        statistics.pairs, statistics.outliers = (int(total) for total in state["totals"])
        return statistics

    def results(self) -> Arrays:
        """What is published; activations are in normalised feature units.

        (F,): density (float64), firing_count, mean_activation over the pairs where it fires, max_activation,
        sum_activation and sum_squares (float64). Per source (S, F): firing_count_by_source, activation_by_source;
        (S,): pairs_by_source.
        """
        return {
            "density": self.count_F / max(1, self.pairs),
            "firing_count": self.count_F,
            "mean_activation": (self.sum_F / np.maximum(1, self.count_F)).astype(np.float32),
            "max_activation": self.max_F,
            "sum_activation": self.sum_F,
            "sum_squares": self.sum_squares_F,
            "firing_count_by_source": self.source_count_SF,
            "activation_by_source": self.source_sum_SF,
            "pairs_by_source": self.source_pairs_S,
        }


_ARRAYS = (
    "count_F",
    "sum_F",
    "sum_squares_F",
    "max_F",
    "source_pairs_S",
    "source_count_SF",
    "source_sum_SF",
)
