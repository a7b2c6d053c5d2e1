"""Halves and excerpts: by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from modeldiff.features.measures.explain.excerpts import LENGTH, MIN_TEXTS, Excerpts
from modeldiff.features.measures.explain.sample import Sample, in_second_half


def made(lengths: list[int], code_N: np.ndarray, second: list[bool], texts: list[int] | None = None) -> Sample:
    """One feature, a document for each length; all words alike."""
    n = sum(lengths)
    windows = len(lengths)
    return Sample(
        words=["word"],
        word_N=np.zeros(n, np.int32),
        window_N=np.repeat(np.arange(windows), lengths).astype(np.int32),
        row_N=np.arange(n),
        kept_N=np.ones(n, bool),
        codes_NG=sparse.csc_matrix(code_N[:, None].astype(np.float32)),
        document_W=np.arange(windows),
        source_W=np.zeros(windows, np.int32),
        text_W=np.array(texts or range(windows), np.uint64),
        second_W=np.array(second),
    )


def test_the_halves_are_halves_whatever_order_the_sources_come_in() -> None:
    second = in_second_half(np.arange(10_000), 0)
    for start in range(4):  # sources are often mixed by turns
        assert 0.45 < second[start::4].mean() < 0.55
    assert 0.4 < (second == in_second_half(np.arange(10_000), 1)).mean() < 0.6
    np.testing.assert_array_equal(second[:10], in_second_half(np.arange(10), 0))


def test_excerpts_are_equal_parts_of_texts() -> None:
    lengths = [LENGTH, LENGTH + 1, 1, 3 * LENGTH]
    excerpts = Excerpts.of(made(lengths, np.zeros(sum(lengths)), [False] * 4))
    assert (excerpts.stop_E - excerpts.start_E).tolist() == [32, 16, 17, 1, 32, 32, 32]
    assert excerpts.document_E.tolist() == [0, 1, 1, 2, 3, 3, 3]


def test_held_out_texts_come_from_the_other_half_each_from_a_document_of_its_own() -> None:
    rng = np.random.default_rng(0)
    lengths = [64] * 40
    code_N = np.where(rng.random(64 * 40) < 0.02, rng.random(64 * 40) + 0.1, 0)
    second = [number % 2 == 1 for number in range(40)]
    texts = list(range(40))
    texts[5] = texts[4]  # a document that stands in both halves
    texts[9] = texts[7]  # and one that repeats what was shown
    excerpts = Excerpts.of(made(lengths, code_N, second, texts))
    chosen = excerpts.choose(0, 6, np.array([7]), rng)
    assert not isinstance(chosen, str)
    for kind in (chosen.active, chosen.inactive):
        documents = excerpts.document_E[kind].tolist()
        assert len(documents) == len(set(documents)) == 6
        assert all(number % 2 == 1 and number not in (5, 7, 9) for number in documents)
    activation_E = excerpts.activation(0)
    assert (activation_E[chosen.inactive] == 0).all()
    usable = excerpts.second_E & ~np.isin(excerpts.document_E, [5, 7, 9])
    assert activation_E[chosen.active][0] == activation_E[usable].max()
    assert (activation_E[chosen.active] > 0).all()


@pytest.mark.parametrize("fires", ["never", "everywhere"])
def test_too_few_texts_of_a_kind_are_said(fires: str) -> None:
    code_N = np.zeros(320) if fires == "never" else np.ones(320)
    why = Excerpts.of(made([32] * 10, code_N, [True] * 10)).choose(0, 5, np.array([]), np.random.default_rng(0))
    assert isinstance(why, str)
    assert "too few" in why


def test_as_many_texts_of_each_kind_as_there_are_of_the_rarer() -> None:
    code_N = np.zeros(320)
    code_N[: 32 * (MIN_TEXTS + 1) : 32] = 1
    chosen = Excerpts.of(made([32] * 10, code_N, [True] * 10)).choose(0, 5, np.array([]), np.random.default_rng(0))
    assert not isinstance(chosen, str)
    assert [len(kind) for kind in (chosen.active, chosen.inactive)] == [MIN_TEXTS + 1] * 2
