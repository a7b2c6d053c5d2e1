"""Lifts by hand, and what may count as characteristic."""

from __future__ import annotations

import numpy as np
import pytest

from modeldiff.features.measures.explain.describe import PRIOR, Lift, characteristic

N = 1000


def found(word_N: np.ndarray, row_C: np.ndarray, value_C: np.ndarray, names: list[str], seed: int = 0) -> list[Lift]:
    """In texts of 20 words."""
    return characteristic(word_N, names, np.arange(N) // 20, row_C, value_C.astype(np.float32), seed)


@pytest.mark.parametrize(("texts", "expected"), [(1, []), (2, []), (3, ["address"])])
def test_a_word_counts_by_the_documents_that_it_is_in(texts: int, expected: list[str]) -> None:
    """A feature fires on an address, twelve times in all, which so many texts hold."""
    row_C = np.concatenate([300 * text + np.arange(0, 24 // texts, 2) % 20 for text in range(texts)])
    word_N = np.zeros((N, 1), np.int32)
    word_N[row_C] = 1
    assert [one.name for one in found(word_N, row_C, np.ones(len(row_C)), ["other", "address"])] == expected


def test_the_activation_counts_and_not_only_the_firings() -> None:
    """20 firings, half of them on the word, which have three quarters of the activation."""
    word_N = np.zeros((N, 1), np.int32)
    on, elsewhere = np.arange(3, N, 100), np.arange(51, N, 100)
    word_N[on] = 1
    row_C = np.sort(np.concatenate([on, elsewhere]))
    value_C = np.where(np.isin(row_C, on), 3.0, 1.0)
    (herb,) = found(word_N, row_C, value_C, ["other", "herb"])
    average = 40 / N
    assert herb.name == "herb"
    assert herb.lift == pytest.approx((30 + PRIOR * average) / (10 + PRIOR) / average)
    assert herb.chance < herb.lift


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_characteristic_of_random_firings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"w{i}" for i in range(30)]
    word_N = rng.integers(0, 30, (N, 1)).astype(np.int32)
    row_C = np.sort(rng.choice(N, 100, replace=False))
    # One in 1 + SHIFTS of 30 words together, by chance.
    assert len(found(word_N, row_C, np.ones(100), names, seed)) <= 1


def test_runs_that_meet_a_topic_by_chance_are_not_characteristic() -> None:
    """Texts of 50 words, each all about one thing of 10; a feature fires all through 4 random texts. Counted as
    independent firings its words would be beyond doubt; moved along the texts, the runs meet as much elsewhere."""
    word_N = np.repeat(np.arange(20) % 10, 50).astype(np.int32)[:, None]
    row_C = np.concatenate([np.arange(50 * text, 50 * text + 50) for text in (2, 7, 11, 18)])
    assert found(word_N, row_C, np.ones(200), [f"topic {i}" for i in range(10)]) == []
