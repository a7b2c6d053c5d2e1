"""How much of a feature's activation the surface of the text explains: the word that ends at the pair.

For each word the mean activation in one half of the windows, shrunk to zero as sum / (count + 2), predicts the
activation in the other half. What a word's form alone explains needs no model to read it. Everything is sparse: a word
has a mean only for features that fire on it.

Legend: N pairs of the sample, F features, K words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.features.measures.models import Window
from modeldiff.workspace.activations import ActivationStore

_PRIOR_COUNT = 2
# Words are cut to so many characters.
_LONGEST = 64


def last_word(text: str) -> str:
    """The last word of a text, in lower case; a punctuation mark is one. "" where there is none."""
    words = re.findall(r"\w+|[^\w\s]", text[-_LONGEST:].lower())
    return str(words[-1]) if words else ""


def words_of(store: ActivationStore, windows: Sequence[Window]) -> NDArray[np.int64]:
    """(N,) the number of the word that ends at each of the windows' pairs, or of its beginning where the pair ends
    inside it."""
    numbers: dict[str, int] = {}
    word_N: list[int] = []
    plan, shard = None, -1
    for window in windows:
        if plan is None or window.rows.shard != shard:
            plan, shard = store.plan(window.rows.shard), window.rows.shard
        text = plan.documents[plan.pairs.document[window.rows.start]].text
        ends = plan.pairs.char_end[window.rows.start : window.rows.stop].tolist()
        word_N += [numbers.setdefault(last_word(text[:end]), len(numbers)) for end in ends]
    return np.array(word_N, np.int64)


def surface_r2(codes_NF: sparse.csr_matrix, word_N: NDArray[np.int64], fit_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(F,) held-out R² of each feature's activation from the words; NaN where it does not fire in both halves."""
    n, words = codes_NF.shape[0], int(word_N.max(initial=-1)) + 1
    codes_NF = codes_NF.astype(np.float64)
    has_word_KN = sparse.csr_matrix((np.ones(n), (word_N, np.arange(n))), shape=(words, n))
    (sum_KF, count_K), (held_KF, held_K) = (
        (has_word_KN[:, half_N] @ codes_NF[half_N], np.bincount(word_N[half_N], minlength=words))
        for half_N in (fit_N, ~fit_N)
    )
    mean_KF = sparse.diags_array(1 / (count_K + _PRIOR_COUNT)) @ sum_KF
    held_NF = codes_NF[~fit_N]
    squares_F = _column_sums(held_NF.multiply(held_NF))
    predicted_F = _column_sums(sparse.diags_array(held_K.astype(np.float64)) @ mean_KF.multiply(mean_KF))
    residual_F = squares_F - 2 * _column_sums(held_KF.multiply(mean_KF)) + predicted_F
    total_F = squares_F - _column_sums(held_NF) ** 2 / max(1, held_NF.shape[0])
    fires_F = (_column_sums(sum_KF) > 0) & (total_F > 1e-9 * squares_F)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(fires_F, 1 - residual_F / total_F, np.nan)


def _column_sums(matrix: sparse.csr_matrix) -> NDArray[np.float64]:
    return np.asarray(matrix.sum(axis=0), np.float64).ravel()
