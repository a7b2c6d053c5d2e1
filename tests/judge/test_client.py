"""Asking through cache and budget: what cannot be read is asked again, then missing, and every answer is durable."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeldiff.errors import MachineError
from modeldiff.judge.client import Answer, AnswerCache, Judge, Judged, Prompt
from modeldiff.judge.questions import read_flags, read_rating
from modeldiff.workspace.files import sha256_json

PROMPTS = [Prompt(f"feature {n}", "Rate.", f"text {n}") for n in range(3)]
RATINGS = [read_rating] * 3


class Saying:
    """A backend that says what it is told to."""

    name, identity = "saying", {"judge": "saying"}

    def __init__(self, say: Callable[[Prompt], str | None]) -> None:
        self.say = say
        self.asked: list[Prompt] = []

    def answer(self, prompts: Sequence[Prompt], keep: Callable[[int, Answer], None]) -> None:
        for number, prompt in enumerate(prompts):
            self.asked.append(prompt)
            text = self.say(prompt)
            keep(number, Answer(text, None if text else "no words"))


def by_attempt(*answers: str | None) -> Callable[[Prompt], str | None]:
    return lambda prompt: answers[prompt.attempt] if prompt.id == "feature 1" else "RATING: 2"


def judge_of(backend: Saying, folder: Path, max_calls: int | None = None) -> Judge:
    return Judge(backend, AnswerCache(folder), max_calls)


def test_only_what_cannot_be_read_is_asked_again_in_other_words(tmp_path: Path) -> None:
    backend = Saying(by_attempt("somewhat", "RATING: 4"))
    found = judge_of(backend, tmp_path).ask(PROMPTS, RATINGS)
    assert found == [Judged(2, None), Judged(4, None), Judged(2, None)]
    assert [(prompt.id, prompt.attempt) for prompt in backend.asked[3:]] == [("feature 1", 1)]
    assert backend.asked[3].user.startswith("text 1\n\nAn answer to this did not have the form")


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
    backend = Saying(by_attempt(*answers))
    found = judge_of(backend, tmp_path).ask(PROMPTS, RATINGS)
    assert found == [Judged(2, None), Judged(None, reason), Judged(2, None)]
    assert len(backend.asked) == 5


def test_a_rerun_asks_nothing_that_was_answered_readably_or_not(tmp_path: Path) -> None:
    say = by_attempt("hm", "hm", "hm")
    first = judge_of(Saying(say), tmp_path).ask(PROMPTS, RATINGS)
    backend = Saying(say)
    judge = judge_of(backend, tmp_path, max_calls=0)
    assert (judge.planned(PROMPTS), judge.ask(PROMPTS, RATINGS)) == (0, first)
    assert backend.asked == []
    assert judge_of(backend, tmp_path / "new").planned([*PROMPTS, *PROMPTS[:2]]) == 3


def test_each_prompt_has_a_reader_of_its_own_and_zero_is_a_value(tmp_path: Path) -> None:
    backend = Saying(lambda prompt: str([1] * int(prompt.id[-1])))
    readers = [partial(read_flags, count=count) for count in (0, 1, 1)]
    assert [one.value for one in judge_of(backend, tmp_path).ask(PROMPTS, readers)] == [[], [1], None]
    zeros = judge_of(backend, tmp_path).ask(PROMPTS, [lambda _: 0] * 3)
    assert zeros == [Judged(0, None)] * 3


def test_an_answer_without_a_text_is_for_this_run_only(tmp_path: Path) -> None:
    def failing(prompt: Prompt) -> str | None:
        if prompt.id == "feature 2":
            raise MachineError("out of order")
        return None if prompt.id == "feature 0" else "RATING: 1"

    with pytest.raises(MachineError, match="out of order; 1 of 3 answers arrived and are kept"):
        judge_of(Saying(failing), tmp_path).answers(PROMPTS)
    judge = judge_of(Saying(failing), tmp_path)
    assert judge.planned(PROMPTS) == 2
    assert judge.answers(PROMPTS[:2]) == [Answer(None, "no words"), Answer("RATING: 1")]
    assert judge.planned(PROMPTS[:2]) == 1


@settings(max_examples=25)
@given(text=st.text(st.characters(exclude_categories=())), reason=st.none() | st.text())
def test_any_text_survives(tmp_path: Path, text: str, reason: str | None) -> None:
    AnswerCache(tmp_path / "new").add("key", PROMPTS[0], Answer(text, reason))
    assert AnswerCache(tmp_path / "new").get("key") == Answer(text, reason)
    assert AnswerCache(tmp_path / "new").get("other") is None


def test_an_answer_cut_short_or_altered_is_said_and_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = AnswerCache(tmp_path)
    cache.add("key", PROMPTS[0], Answer("text 1"))
    path = tmp_path / "key.json"
    whole = path.read_bytes()
    data = {"id": "", "attempt": 0, "text": [1], "reason": None, "check": sha256_json(["key", [1], None])[:16]}
    others = (whole.replace(b"text 1", b"text 7"), b"[1]", b"{}", b'{"text": ' + b"[" * 3000, json.dumps(data).encode())
    for damaged in (*(whole[:end] for end in range(len(whole))), *others):
        path.write_bytes(damaged)
        assert cache.get("key") is None
        assert "key.json: is damaged; what it answered is asked again" in capsys.readouterr().err
    cache.add("key", PROMPTS[0], Answer("text 2"))
    assert cache.get("key") == Answer("text 2")
