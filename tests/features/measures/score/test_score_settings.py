"""Settings of the score: who judges is needed, the defaults are the paper's, and nonsense is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from modeldiff.errors import InputError
from modeldiff.features.measures.score.settings import ScoreSettings


def test_without_a_judge_the_message_says_what_to_give() -> None:
    with pytest.raises(InputError) as caught:
        ScoreSettings()
    assert "--judge local --judge-model MODEL" in str(caught.value)
    assert "--judge openai --judge-model NAME" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_defaults_are_the_papers() -> None:
    made = ScoreSettings(judge="openai", judge_model="wise")
    assert (made.sample, made.random_directions) == (20, 10)
    # Paper B.5; strength 0, the model as it is, is always there.
    assert made.strengths == tuple(range(1, 11))
    assert made.prompt == ("What's on your mind?", "What do you want to talk about?", "Tell me something")
    assert (made.max_new_tokens, made.temperature, made.top_p, made.min_steerability) == (200, 0.7, 0.9, 3.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample": 0}, "--sample"),
        ({"features_from": ("C",)}, "--features-from"),
        ({"features_from": ()}, "--features-from"),
        ({"random_directions": -1}, "--random-directions must be at least 0, found -1"),
        ({"strength": ()}, "--strength"),
        ({"strength": (0.0,)}, "--strength"),
        ({"strength": (-1.0,)}, "--strength"),
        ({"strength": (float("inf"),)}, "--strength"),
        ({"prompt": (" ",)}, "--prompt"),
        ({"prompt": ()}, "--prompt"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"min_steerability": 6.0}, "--min-steerability"),
        ({"aggregate": "sum"}, "--aggregate"),
        ({"judge": "effect"}, "--judge expects local or openai, found 'effect'"),
        ({"judge": "none"}, "--judge expects local or openai, found 'none'"),
        ({"judge_model": None}, "--judge local needs a model: name it with --judge-model"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ScoreSettings(**{"judge": "local", "judge_model": "m", **values})
    assert "\n" not in str(caught.value)
