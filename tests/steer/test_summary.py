"""Strengths as they are written, repetition of hand-made texts, and the figures of a sweep."""

from __future__ import annotations

import math
from typing import Any

import pytest

from modeldiff.errors import InputError
from modeldiff.steer.figure import dose_figure
from modeldiff.steer.repetition import repeated_share
from modeldiff.steer.strengths import parse_strengths
from modeldiff.steer.summary import coherent_range, dose_rows, pooled, record


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", (2.0,)),
        ("-1.5", (-1.5,)),
        ("-1:1:0.5", (-1.0, -0.5, 0.0, 0.5, 1.0)),
        ("0:1:0.1", tuple(i / 10 for i in range(11))),
        ("4:0:-2", (4.0, 2.0, 0.0)),
        ("0:1:0.4", (0.0, 0.4, 0.8)),
        ("3:3:1", (3.0,)),
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
        ("one two three four five six", 0.0),
        # 5 runs of four: a b a b, b a b a, a b a b, b a b a, a b a b; two are distinct.
        ("a b A b a B a b", 1 - 2 / 5),
        ("since " * 40, 1 - 1 / 37),
        ("!!!!!!!", 1 - 1 / 4),
        ("東京東京東京", 1 - 2 / 3),
        ("one, two, three", 0.0),
    ],
)
def test_repetition_counts_runs_of_four_words(text: str, expected: float | None) -> None:
    assert repeated_share(text) == (None if expected is None else pytest.approx(expected))


def made(nats: float | None, tokens: int = 10, repeated: float | None = 0.0, kl: float | None = 0.0) -> dict[str, Any]:
    return {
        "text": "",
        "tokens": tokens,
        "nats": nats,
        "repeated": repeated,
        "kl_first": kl,
        "kl": kl,
        "kl_tokens": 10,
    }


def sweep_of(figures: dict[float, dict[str, Any]]) -> list[dict[str, Any]]:
    return [record("A", "feature", strength, "p", one, figures[0.0]) for strength, one in figures.items()]


def test_a_record_is_relative_to_the_unsteered_text_of_its_prompt() -> None:
    found = record("B", "random 2", 3.0, "p", made(1.5, repeated=0.75), made(1.0, repeated=0.25))
    assert found["perplexity_ratio"] == pytest.approx(math.exp(0.5))
    assert found["repeated_change"] == 0.5
    assert record("A", "feature", 1.0, "p", made(None, repeated=None), made(1.0))["perplexity_ratio"] is None


def test_tokens_count_alike_and_what_is_missing_is_left_out() -> None:
    records = sweep_of({0.0: made(1.0, tokens=30), 1.0: made(2.0, repeated=None), 2.0: made(None, kl=None)})
    found = pooled(records)
    assert found["nats_per_token"] == pytest.approx((30 * 1.0 + 10 * 2.0) / 40)
    assert (found["repeated_generations"], found["kl_tokens"], found["tokens"]) == (2, 20, 50)
    nothing = pooled(records[2:])
    assert nothing["nats_per_token"] is None
    assert nothing["kl"] is None


def test_random_directions_count_together() -> None:
    plain = made(1.0)
    records = [*sweep_of({0.0: plain})]
    records += [record("A", f"random {i}", 2.0, "p", made(1.0 + i), plain) for i in (1, 2)]
    unsteered, random = dose_rows(records)
    assert (unsteered["perplexity_ratio"], unsteered["coherent"]) == (1, True)
    assert (random["direction"], random["generations"]) == ("random", 2)
    assert random["perplexity_ratio"] == pytest.approx(math.exp(1.5))


def test_the_coherent_range_ends_at_the_first_gap() -> None:
    log2 = math.log(2)
    figures = {
        0.0: made(1.0, repeated=0.1),
        -2.0: made(1.0),  # behind a strength that is not coherent
        -1.0: made(1.0 + log2 + 0.01),
        0.5: made(1.0 + log2 - 0.01),
        1.0: made(0.5, repeated=0.29),
        2.0: made(0.1, repeated=0.9),  # a loop: easy to predict
    }
    rows = dose_rows(sweep_of(figures))
    assert coherent_range(rows, "A") == {"from": 0.0, "to": 1.0, "least": -2.0, "most": 2.0}
    assert [row["strength"] for row in rows if row["coherent"]] == [0.0, -2.0, 0.5, 1.0]


def test_the_figure_is_the_same_for_the_same_rows_and_bears_gaps() -> None:
    plain = made(1.0)
    records = sweep_of({0.0: plain, 1.0: made(None, repeated=None, kl=None), -1.0: made(3.0, kl=2.0)})
    records += [record("A", f"random {i}", 1.0, "p", made(2.0, kl=0.1 * i), plain) for i in (1, 2)]
    drawn = [dose_figure(dose_rows(records), records, {"A": "A, its own decoder row"}, "title") for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith(b"\x89PNG")
