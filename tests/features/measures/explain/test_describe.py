"""Lifts by hand, and what may count as characteristic."""

from __future__ import annotations

import numpy as np
import pytest

from modeldiff.features.measures.explain.describe import MIN_COUNT, PRIOR, Lift, before, characteristic

N = 1000


def found(word_N: np.ndarray, row_C: np.ndarray, value_C: np.ndarray, names: list[str], seed: int = 0) -> list[Lift]:
    return characteristic(word_N, names, row_C, value_C.astype(np.float32), seed)


def test_a_word_that_has_all_the_activation() -> None:
    """10 of 1000 pairs are the word, and the feature fires there and nowhere else: m = M, so the lift is
    (n + 5 n / N) / (n + 5) * N / n = (N + 5) / (n + 5)."""
    word_N = np.zeros((N, 1), np.int32)
    row_C = np.arange(7, N, 100)
    word_N[row_C] = 1
    (herb,) = found(word_N, row_C, np.full(10, 2.0), ["other", "herb"])
    assert herb.name == "herb"
    assert herb.lift == pytest.approx((N + PRIOR) / (10 + PRIOR))
    assert herb.chance < herb.lift


def test_the_activation_counts_and_not_only_the_firings() -> None:
    """20 firings, half of them on the word, which have three quarters of the activation."""
    word_N = np.zeros((N, 1), np.int32)
    on, elsewhere = np.arange(3, N, 100), np.arange(51, N, 100)
    word_N[on] = 1
    row_C = np.sort(np.concatenate([on, elsewhere]))
    value_C = np.where(np.isin(row_C, on), 3.0, 1.0)
    (herb,) = found(word_N, row_C, value_C, ["other", "herb"])
    average = 40 / N
    assert herb.lift == pytest.approx((30 + PRIOR * average) / (10 + PRIOR) / average)


def test_a_word_seen_too_seldom_is_not_looked_at() -> None:
    word_N = np.zeros((N, 1), np.int32)
    row_C = np.arange(7, N, 1000 // (MIN_COUNT - 1))[: MIN_COUNT - 1]
    word_N[row_C] = 1
    assert found(word_N, row_C, np.ones(MIN_COUNT - 1), ["other", "herb"]) == []


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


def test_words_before_a_place_stay_in_its_text_and_count_once() -> None:
    word_N = np.array([3, 4, 3, 5, 6, 7], np.int32)
    window_N = np.array([0, 0, 0, 0, 1, 1], np.int32)
    reached = [sorted(set(row.tolist()) - {-1}) for row in before(word_N, window_N, 2)]
    assert reached == [[], [3], [3, 4], [3, 4], [], [6]]
    twice = before(np.array([3, 3, 3], np.int32), np.zeros(3, np.int32), 2)
    assert (twice[2] >= 0).sum() == 1
    assert before(np.array([1, 2], np.int32), np.zeros(2, np.int32), 20).shape == (2, 20)
