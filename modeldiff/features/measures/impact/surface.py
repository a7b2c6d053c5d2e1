"""How much of a feature's activation the surface of the text explains: the word that ends at the pair, or two words.

For each word (or two words in a row) the mean activation on the fitting documents, shrunk to zero as sum / (count + 2),
predicts the activation on the others. What a word's form alone explains needs no model to read it.

Everything is sparse: a key has a mean only for features that fire on it, so no array is larger than the codes.

Legend: N pairs of the sample, F features, K keys (words, or two words in a row).
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.features.windows import Window
from modeldiff.workspace.activations import ActivationStore

# A punctuation mark is a word of its own.
_WORD = re.compile(r"\w+|[^\w\s]")
_PRIOR_COUNT = 2
_NONE = ""
# With fewer records than this (a book is one), windows are split in their place.
_FEWEST_RECORDS = 10


@dataclass(frozen=True)
class Surface:
    """The text at each of N pairs, as numbers of keys."""

    one_N: NDArray[np.int64]
    """The word that ends at the pair, or its beginning when the pair ends inside it."""
    two_N: NDArray[np.int64]
    """The same with the word before it."""
    document_N: NDArray[np.int64]
    """Number of the record the pair is from, or of the window where there are few records."""
    split_by: str = "record"
    """What is whole in either half: record or window."""

    def take(self, kept_N: NDArray[np.bool_]) -> Surface:
        """Of some of the pairs."""
        return Surface(self.one_N[kept_N], self.two_N[kept_N], self.document_N[kept_N], self.split_by)

    def fitting(self, seed: int) -> NDArray[np.bool_]:
        """(N,) True in a random half of the documents."""
        documents, which_N = np.unique(self.document_N, return_inverse=True)
        half = np.random.default_rng((seed, 2)).permutation(len(documents)) < len(documents) / 2
        return half[which_N]


def last_words(text: str, ends: Sequence[int]) -> list[tuple[str, str]]:
    """(word before, word) at each of these characters, lower-cased; "" where there is none."""
    found = [(match.start(), match.group()) for match in _WORD.finditer(text)]
    starts = [start for start, _ in found]
    words = []
    for end in ends:
        at = bisect.bisect_left(starts, end) - 1
        # What stands beyond the pair does not count: neither model has read it.
        word = found[at][1][: end - starts[at]] if at >= 0 else _NONE
        words.append((found[at - 1][1].lower() if at >= 1 else _NONE, word.lower()))
    return words


def read_surface(store: ActivationStore, windows: Sequence[Window]) -> Surface:
    """The text at the windows' pairs, in order.

    Raises:
        InputError: the activations were imported without texts.
    """
    numbers: dict[str, int] = {}
    words: list[tuple[int, int]] = []
    records: list[int] = []
    shard, plan = -1, None
    for window in windows:
        if plan is None or window.rows.shard != shard:
            shard, plan = window.rows.shard, store.plan(window.rows.shard)
        document = plan.documents[plan.pairs.document[window.rows.start]]
        ends = plan.pairs.char_end[window.rows.start : window.rows.stop].tolist()
        for pair in last_words(document.text, ends):
            before, word = (numbers.setdefault(one, len(numbers)) for one in pair)
            words.append((before, word))
        records.append(document.index)
    word_N2 = np.array(words, np.int64).reshape(-1, 2)
    two_N = np.unique(word_N2[:, 0] * max(1, len(numbers)) + word_N2[:, 1], return_inverse=True)[1]
    few = len(set(records)) < _FEWEST_RECORDS
    unit_W = np.arange(len(windows)) if few else np.array(records, np.int64)
    document_N = np.repeat(unit_W, [len(window.rows) for window in windows])
    return Surface(word_N2[:, 1], two_N.astype(np.int64), document_N, "window" if few else "record")


def surface_r2(codes_NF: sparse.csr_matrix, key_N: NDArray[np.int64], fit_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(F,) held-out R² of each feature's activation from the keys; NaN where it does not fire in both halves."""
    keys = int(key_N.max(initial=-1)) + 1
    sum_KF, count_K = _by_key(codes_NF, key_N, fit_N, keys)
    # Sparse: unseen keys and features that do not fire on a key predict zero.
    mean_KF = sparse.diags_array(1 / (count_K + _PRIOR_COUNT)) @ sum_KF
    held_KF, held_K = _by_key(codes_NF, key_N, ~fit_N, keys)
    held_NF = codes_NF[~fit_N].astype(np.float64)
    squares_F = _column_sums(held_NF.multiply(held_NF))
    predicted_F = _column_sums(sparse.diags_array(held_K) @ mean_KF.multiply(mean_KF))
    residual_F = squares_F - 2 * _column_sums(held_KF.multiply(mean_KF)) + predicted_F
    total_F = squares_F - _column_sums(held_NF) ** 2 / max(1, held_NF.shape[0])
    fires_F = (_column_sums(sum_KF) > 0) & (total_F > 1e-9 * squares_F)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(fires_F, 1 - residual_F / total_F, np.nan)


def _by_key(
    codes_NF: sparse.csr_matrix, key_N: NDArray[np.int64], used_N: NDArray[np.bool_], keys: int
) -> tuple[sparse.csr_matrix, NDArray[np.float64]]:
    """(sums of activations (K, F), numbers of pairs (K,)) over the pairs used."""
    key_M = key_N[used_N]
    is_key_KM = sparse.csr_matrix((np.ones(len(key_M)), (key_M, np.arange(len(key_M)))), shape=(keys, len(key_M)))
    return is_key_KM @ codes_NF[used_N].astype(np.float64), np.bincount(key_M, minlength=keys).astype(np.float64)


def _column_sums(matrix: sparse.csr_matrix) -> NDArray[np.float64]:
    return np.asarray(matrix.sum(axis=0), np.float64).ravel()
