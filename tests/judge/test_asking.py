"""What cannot be read is asked again, then missing: never guessed, never lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modeldiff.errors import InputError, MachineError
from modeldiff.judge.asking import ask_parsed
from modeldiff.judge.base import Answer, Keep, Prompt
from modeldiff.judge.cache import AnswerCache
from modeldiff.judge.cached import CachedJudge
from modeldiff.judge.questions import read_flags, read_rating

PROMPTS = [Prompt(f"feature {n}", "steerability", "Rate.", f"text {n}") for n in range(3)]


class Saying:
    """An `Asker` that says what it is told to."""

    name = "saying"

    def __init__(self, say: Callable[[Prompt], str | None]) -> None:
        self.say = say
        self.asked: list[Prompt] = []

    def identity(self) -> dict[str, Any]:
        return {"judge": "saying"}

    def answer(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        for number, prompt in enumerate(prompts):
            self.asked.append(prompt)
            text = self.say(prompt)
            keep(number, Answer(text, None if text else "no words"), text is not None)


def by_attempt(*answers: str | None) -> Callable[[Prompt], str | None]:
    return lambda prompt: answers[prompt.attempt] if prompt.id == "feature 1" else "RATING: 2"


def judge_of(asker: Saying, folder: Path, max_calls: int | None = None) -> CachedJudge:
    return CachedJudge(asker, AnswerCache(folder), max_calls)


def test_only_what_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    asker = Saying(by_attempt("somewhat", "RATING: 4"))
    found = ask_parsed(judge_of(asker, tmp_path), PROMPTS, read_rating)
    assert [one.value for one in found] == [2, 4, 2]
    assert [one.reason for one in found] == [None, None, None]
    assert [answer.text for answer in found[1].answers] == ["somewhat", "RATING: 4"]
    assert [(prompt.id, prompt.attempt) for prompt in asker.asked[3:]] == [("feature 1", 1)]
    # The very same words would get the very same answer.
    assert asker.asked[3].user.startswith("text 1\n\nAn answer to this did not have the form")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (("RATING: 7", "RATING: 1\nRATING: 2", "no"), "no answer of 3 has the form asked for"),
        (("RATING: 7", None, None), "no words"),
    ],
)
def test_after_the_last_attempt_an_answer_is_missing(
    tmp_path: Path, answers: tuple[str | None, ...], reason: str
) -> None:
    asker = Saying(by_attempt(*answers))
    found = ask_parsed(judge_of(asker, tmp_path), PROMPTS, read_rating)
    assert [one.value for one in found] == [2, None, 2]
    assert found[1].reason == reason
    assert [answer.text for answer in found[1].answers] == list(answers)
    assert len(asker.asked) == 5


def test_a_rerun_asks_nothing_that_was_answered_readably_or_not(tmp_path: Path) -> None:
    say = by_attempt("hm", "hm", "hm")
    first = ask_parsed(judge_of(Saying(say), tmp_path), PROMPTS, read_rating)
    asker = Saying(say)
    assert ask_parsed(judge_of(asker, tmp_path, max_calls=0), PROMPTS, read_rating) == first
    assert asker.asked == []


def test_a_value_of_zero_is_not_missing(tmp_path: Path) -> None:
    asker = Saying(lambda _: "anything")
    assert [one.value for one in ask_parsed(judge_of(asker, tmp_path), PROMPTS, lambda _: 0)] == [0, 0, 0]
    assert len(asker.asked) == 3


def test_each_prompt_may_have_a_reader_of_its_own(tmp_path: Path) -> None:
    asker = Saying(lambda prompt: str([1] * int(prompt.id[-1])))
    readers = [partial(read_flags, count=count) for count in (0, 1, 1)]
    assert [one.value for one in ask_parsed(judge_of(asker, tmp_path), PROMPTS, readers)] == [[], [1], None]


def test_asking_again_stays_within_the_budget(tmp_path: Path) -> None:
    say = by_attempt("hm", "RATING: 5")
    with pytest.raises(
        InputError, match=r"1 calls to saying are needed after the 3 made so far, whose answers are kept"
    ):
        ask_parsed(judge_of(Saying(say), tmp_path, max_calls=3), PROMPTS, read_rating)
    found = ask_parsed(judge_of(Saying(say), tmp_path, max_calls=1), PROMPTS, read_rating)
    assert [one.value for one in found] == [2, 5, 2]


def test_an_answer_that_is_not_final_is_used_and_not_counted_as_kept(tmp_path: Path) -> None:
    def failing(prompt: Prompt) -> str | None:
        if prompt.id == "feature 2":
            raise MachineError("out of order")
        return None if prompt.id == "feature 0" else "RATING: 1"

    with pytest.raises(MachineError, match="out of order; 1 of 3 answers arrived and are kept"):
        judge_of(Saying(failing), tmp_path).ask(PROMPTS)
    judge = judge_of(Saying(failing), tmp_path)
    assert judge.planned(PROMPTS) == 2
    assert judge.ask(PROMPTS[:2]) == [Answer(None, "no words"), Answer("RATING: 1")]
    assert judge.planned(PROMPTS[:2]) == 1


def test_nothing_to_ask_asks_nobody(tmp_path: Path) -> None:
    asker = Saying(by_attempt())
    assert ask_parsed(judge_of(asker, tmp_path), [], read_rating) == []
    assert not list(tmp_path.iterdir())
