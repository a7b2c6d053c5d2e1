"""Strengths as a user writes them, repetition of hand-made texts, and the figures of a sweep."""

from __future__ import annotations

import math
from typing import Any

import pytest

from modeldiff.errors import InputError
from modeldiff.steer.dose import coherent_range, dose_rows
from modeldiff.steer.effect import repeated_share
from modeldiff.steer.settings import parse_strengths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", (2.0,)),
        ("-1:1:0.5", (-1.0, -0.5, 0.0, 0.5, 1.0)),
        ("0:1:0.1", tuple(i / 10 for i in range(11))),
        ("4:0:-2", (4.0, 2.0, 0.0)),
        ("0:1:0.4", (0.0, 0.4, 0.8)),
    ],
)
def test_numbers_and_ranges(text: str, expected: tuple[float, ...]) -> None:
    assert parse_strengths(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1:2", "0:1:0", "0:1:-1", "1:2:3:4", "nan", "0:inf:1", "0:1:0.0001"])
def test_ranges_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="--strength"):
        parse_strengths(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("one two three", None),
        ("one two three four", 0.0),
        # 5 runs of four: a b a b, b a b a, a b a b, b a b a, a b a b; two are distinct.
        ("a b A b a B a b", 1 - 2 / 5),
        ("since " * 40, 1 - 1 / 37),
        ("東京東京東京", 1 - 2 / 3),
        ("one, two, three", 0.0),
    ],
)
def test_repetition_counts_runs_of_four_words(text: str, expected: float | None) -> None:
    assert repeated_share(text) == (None if expected is None else pytest.approx(expected))


def record(strength: float, nats: float | None, **figures: Any) -> dict[str, Any]:
    """A line of generations.jsonl."""
    plain = {"model": "A", "direction": "feature", "tokens": 10, "repeated": 0.0, "kl": 0.0, "kl_tokens": 10}
    return {**plain, "strength": strength, "nats_per_token": nats, **figures}


def test_tokens_count_alike_and_what_is_missing_is_left_out() -> None:
    plain = [record(0.0, 1.0, tokens=30, repeated=0.5), record(0.0, 2.0, repeated=None)]
    unsteered, nothing = dose_rows([*plain, record(1.0, None, kl=None, repeated=None)])
    assert unsteered["nats_per_token"] == pytest.approx((30 * 1.0 + 10 * 2.0) / 40)
    assert (unsteered["repeated"], unsteered["generations"], unsteered["coherent"]) == (0.5, 2, True)
    assert (nothing["nats_per_token"], nothing["kl"], nothing["perplexity_ratio"]) == (None, None, None)
    assert not nothing["coherent"]


def test_random_directions_count_together() -> None:
    random = [record(2.0, 1.0 + i, direction=f"random {i}") for i in (1, 2)]
    unsteered, both = dose_rows([record(0.0, 1.0), *random])
    assert (unsteered["perplexity_ratio"], unsteered["coherent"]) == (1, True)
    assert (both["direction"], both["generations"]) == ("random", 2)
    assert both["perplexity_ratio"] == pytest.approx(math.exp(1.5))


def test_the_coherent_range_ends_at_the_first_gap() -> None:
    log2 = math.log(2)
    records = [
        record(0.0, 1.0, repeated=0.1),
        record(-2.0, 1.0),  # behind a strength that is not coherent
        record(-1.0, 1.0 + log2 + 0.01),
        record(0.5, 1.0 + log2 - 0.01),
        record(1.0, 0.5, repeated=0.29),
        record(2.0, 0.1, repeated=0.9),  # a loop: easy to predict
    ]
    rows = dose_rows(records)
    assert coherent_range(rows, "A") == {"from": 0.0, "to": 1.0, "least": -2.0, "most": 2.0}
    assert [row["strength"] for row in rows if row["coherent"]] == [0.0, -2.0, 0.5, 1.0]
