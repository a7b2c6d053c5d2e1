"""What the last words explain of features that are made to follow them, or not to.

Legend: N pairs, F features, K keys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.features.measures.impact.surface import Surface, last_words, read_surface, surface_r2
from modeldiff.features.windows import sample_windows
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.features.made_crosscoder import made_pair

N, DOCUMENT, WORDS = 20_000, 50, 20


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("The Salt winter", 15, ("salt", "winter")),
        ("The Salt winter", 12, ("salt", "win")),
        ("The Salt winter", 9, ("the", "salt")),
        ("Yes, he", 4, ("yes", ",")),
        ("Yes, he", 7, (",", "he")),
        ("Only", 4, ("", "only")),
        ("  x", 1, ("", "")),
        ("Ärger 東京!", 9, ("東京", "!")),
    ],
)
def test_last_words(text: str, end: int, expected: tuple[str, str]) -> None:
    assert last_words(text, [end]) == [expected]


@pytest.fixture(scope="module")
def words() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, WORDS, N)


@pytest.fixture(scope="module")
def surface(words: NDArray[np.int64]) -> Surface:
    before = np.roll(words, 1)
    return Surface(words, before * WORDS + words, np.arange(N) // DOCUMENT)


def codes(words: NDArray[np.int64]) -> sparse.csr_matrix:
    """One word; one word after another; noise; everywhere the same; dead."""
    random = np.random.default_rng(1)
    before = np.roll(words, 1)
    columns = [
        2.0 * (words == 3),
        3.0 * ((words == 5) & (before == 7)),
        random.random(N) * (random.random(N) < 0.05),
        np.ones(N),
        np.zeros(N),
    ]
    return sparse.csr_matrix(np.stack(columns, axis=1).astype(np.float32))


def test_features_of_one_word_of_two_and_of_none(words: NDArray[np.int64], surface: Surface) -> None:
    fit_N = surface.fitting(0)
    one, two = (surface_r2(codes(words), key_N, fit_N) for key_N in (surface.one_N, surface.two_N))
    assert one[0] == pytest.approx(1, abs=0.01)
    assert one[1] < 0.15
    assert two[1] == pytest.approx(1, abs=0.05)
    assert one[2] < 0.01
    assert two[2] < 0.01
    # What does not vary has no variance to explain, and what never fires neither.
    for r2 in (one, two):
        assert np.isnan(r2[3:]).all()
    wrong = surface_r2(codes(words), np.roll(surface.one_N, N // 2), fit_N)
    assert (wrong[:3] < 0.01).all()


def test_sparse_equals_dense(words: NDArray[np.int64], surface: Surface) -> None:
    codes_NF, fit_N, key_N = codes(words)[:, :3], surface.fitting(0), surface.two_N
    dense, keys = codes_NF.toarray().astype(np.float64), key_N.max() + 1
    mean_KF = np.zeros((keys, 3))
    for key in range(keys):
        mine = fit_N & (key_N == key)
        mean_KF[key] = dense[mine].sum(axis=0) / (mine.sum() + 2)
    held, predicted = dense[~fit_N], mean_KF[key_N[~fit_N]]
    expected = 1 - ((held - predicted) ** 2).sum(axis=0) / ((held - held.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(surface_r2(codes_NF, key_N, fit_N), expected, rtol=1e-9)


def test_what_fires_in_one_half_only_has_no_r2(words: NDArray[np.int64], surface: Surface) -> None:
    fit_N = surface.fitting(0)
    one_sided = np.stack([(words == 3) & fit_N, (words == 3) & ~fit_N], axis=1).astype(np.float32)
    assert np.isnan(surface_r2(sparse.csr_matrix(one_sided), surface.one_N, fit_N)).all()


def test_documents_stay_whole(surface: Surface) -> None:
    fit_N = surface.fitting(0)
    halves = fit_N.reshape(-1, DOCUMENT)
    assert (halves.all(axis=1) | ~halves.any(axis=1)).all()
    assert fit_N.mean() == pytest.approx(0.5)
    assert (surface.fitting(1) != fit_N).any()
    np.testing.assert_array_equal(surface.fitting(0), fit_N)


def test_the_words_of_a_store_are_those_of_its_pairs(tmp_path: Path) -> None:
    activations, _, _ = made_pair(Workspace(tmp_path / "ws"))
    store = ActivationStore(activations)
    found = read_surface(store, sample_windows(store, store.pairs))
    # Word i of the store is `w<i>`: no two pairs have the same, and documents have 50.
    assert len(set(found.one_N)) == len(found.one_N) == len(set(found.two_N)) == store.pairs
    np.testing.assert_array_equal(found.document_N, np.arange(store.pairs) // 50)
    assert found.split_by == "record"
    few = read_surface(store, sample_windows(store, store.pairs)[:4])
    assert few.split_by == "window"
    np.testing.assert_array_equal(few.document_N, np.arange(200) // 50)
    kept_N = np.arange(store.pairs) % 3 == 0
    assert len(found.take(kept_N).one_N) == kept_N.sum()
