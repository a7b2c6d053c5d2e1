"""An endpoint that is slow, wrong, rate-limited, flaky or dead: no answer that arrived is lost, and no key is shown."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modeldiff.errors import InputError, MachineError, ModeldiffError
from modeldiff.judge.base import Prompt
from modeldiff.judge.cache import AnswerCache
from modeldiff.judge.cached import CachedJudge
from modeldiff.judge.openai import OpenAIAsker
from tests.judge.fake_endpoint import Answering, Reply, Request, failed, said, serving

KEY = "sk-very-secret-123"
RETRIES = 1


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"feature {n}", "similarity", "Be brief.", f"question {n}") for n in range(count)]


def echo(request: Request, before: int) -> Reply:
    return said(f"answer to {request.user}")


def answers_to(count: int) -> list[str]:
    return [f"answer to question {n}" for n in range(count)]


def first(count: int, reply: Reply) -> Answering:
    """This reply to the first requests, echoes afterwards."""
    return lambda request, before: reply if before < count else echo(request, before)


def judge_at(
    url: str,
    folder: Path,
    *,
    key: str | None = KEY,
    concurrency: int = 1,
    timeout: float = 5.0,
    max_calls: int | None = None,
) -> CachedJudge:
    limits = {"max_tokens": 77, "concurrency": concurrency, "timeout": timeout, "retries": RETRIES}
    return CachedJudge(OpenAIAsker(url, key, "THE_KEY", "wise-model", **limits), AnswerCache(folder), max_calls)


def texts(judge: CachedJudge, asked: list[Prompt]) -> list[str | None]:
    return [answer.text for answer in judge.ask(asked)]


def test_a_request_holds_model_messages_sampling_and_key(tmp_path: Path) -> None:
    with serving(echo) as server:
        assert texts(judge_at(server.base_url, tmp_path), prompts(1)) == answers_to(1)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "wise-model",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 0"}],
        "temperature": 0,
        "max_tokens": 77,
    }


def test_a_rerun_and_a_repeated_prompt_cost_nothing(tmp_path: Path) -> None:
    with serving(echo) as server:
        judge = judge_at(server.base_url, tmp_path)
        asked = [*prompts(3), *prompts(2)]
        assert judge.planned(asked) == 3
        assert texts(judge, asked) == answers_to(3) + answers_to(2)
        assert judge.planned(asked) == 0
        assert texts(judge, asked) == texts(judge_at(server.base_url, tmp_path), asked)
        assert len(server.requests) == 3


def test_the_key_of_the_cache_is_the_question_and_who_is_asked(tmp_path: Path) -> None:
    one = Prompt("a", "similarity", "system", "user")
    with serving(echo) as server, serving(echo) as other:
        judge = judge_at(server.base_url, tmp_path)
        judge.ask([one])
        assert judge.planned([Prompt("b", "steerability", "system", "user")]) == 0
        for changed in ({"system": "x"}, {"user": "x"}, {"attempt": 1}):
            assert judge.planned([Prompt(**{**one.__dict__, **changed})]) == 1
        assert judge_at(other.base_url, tmp_path).planned([one]) == 1


def test_calls_at_the_same_time_give_answers_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    meeting = threading.Barrier(5)

    def together(request: Request, before: int) -> Reply:
        meeting.wait(timeout=30)  # goes on when five requests are there: never, if they come one by one
        return echo(request, before)

    with serving(together) as server:
        judge = judge_at(server.base_url, tmp_path, concurrency=5, timeout=30)
        assert texts(judge, prompts(20)) == answers_to(20)


@pytest.mark.parametrize(
    "trouble",
    [
        failed(500, message="oops"),
        failed(503),
        Reply(502, b"<html>bad gateway</html>"),
        failed(408),
        failed(429, message="slow down"),
        Reply(drop=True),
        Reply(hang=True),
    ],
)
def test_trouble_that_passes_is_waited_for(tmp_path: Path, trouble: Reply) -> None:
    timeout = 0.15 if trouble.hang else 5.0
    with serving(first(RETRIES, trouble)) as server:
        assert texts(judge_at(server.base_url, tmp_path, timeout=timeout), prompts(2)) == answers_to(2)
        assert len(server.requests) == RETRIES + 2


def test_an_empty_account_is_said(tmp_path: Path) -> None:
    empty = first(99, failed(429, code="insufficient_quota", message="pay"))
    with serving(empty) as server, pytest.raises(MachineError, match="used up its quota"):
        judge_at(server.base_url, tmp_path).ask(prompts(1))


@pytest.mark.parametrize(
    "body", [b"{ not json", b"<html>welcome</html>", [1, 2], {}, {"choices": []}, {"choices": [{"message": None}]},
             {"choices": [{"message": {"content": 5}}]}],
)  # fmt: skip
def test_what_is_not_a_completion_is_said(tmp_path: Path, body: object) -> None:
    with serving(first(99, Reply(body=body))) as server, pytest.raises(MachineError, match="is not a chat completion"):
        judge_at(server.base_url, tmp_path).ask(prompts(1))


@pytest.mark.parametrize(
    ("trouble", "concurrency"),
    [
        (failed(500, message="oops"), 1),
        (failed(500, message="oops"), 4),
        (Reply(drop=True), 1),
        (Reply(drop=True), 4),
        (Reply(hang=True), 4),
        (failed(429), 4),
    ],
)
def test_a_server_that_dies_in_the_middle_costs_only_the_calls_that_are_missing(
    tmp_path: Path, trouble: Reply, concurrency: int
) -> None:
    served: list[str] = []

    def dying(request: Request, before: int) -> Reply:
        if before >= 7:
            return trouble
        served.append(request.user)
        return echo(request, before)

    with serving(dying) as server:
        judge = judge_at(server.base_url, tmp_path, concurrency=concurrency, timeout=0.5 if trouble.hang else 5)
        with pytest.raises(MachineError, match=r"in 2 tries .*7 of 20 answers arrived and are kept: the same command"):
            judge.ask(prompts(20))
        server.answering, before = echo, len(server.requests)
        judge = judge_at(server.base_url, tmp_path, concurrency=concurrency)
        assert judge.planned(prompts(20)) == 13
        assert texts(judge, prompts(20)) == answers_to(20)
        assert sorted(server.users[before:] + served) == sorted(p.user for p in prompts(20))


def test_a_closed_port_is_one_line_after_the_tries(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(MachineError, match=r"gave no answer in 2 tries \(no connection\)"):
            judge_at(url, tmp_path).ask(prompts(2))


def test_a_prompt_that_the_server_cannot_take_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """It fails until others are answered, as when several calls run at the same time."""
    poison, *others = prompts(6)
    judges: list[CachedJudge] = []

    def poisoned(request: Request, before: int) -> Reply:
        if request.user != poison.user:
            return echo(request, before)
        judges[0]._asker._one(others.pop())
        return failed(500, message="boom")

    with serving(poisoned) as server:
        judges.append(judge_at(server.base_url, tmp_path))
        (answer,) = judges[0].ask([poison])
        assert answer.text is None
        assert "failed on it 2 times (HTTP 500: boom)" in str(answer.reason)
        # It may fare better another day.
        assert judge_at(server.base_url, tmp_path).planned([poison]) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (failed(400, message="context too long\nby far"), "refuses the request (HTTP 400: context too long by far)"),
        (failed(401, message=f"bad key {KEY}"), "(HTTP 401): the key in THE_KEY is not accepted"),
        (failed(403), "(HTTP 403): the key in THE_KEY is not accepted"),
        (failed(404, message="no model 'wise-model'"), "check --judge-base-url and --judge-model"),
        (failed(422, message=f"what is {KEY}?"), "(HTTP 422: what is [key]?)"),
        (Reply(400, b"<html>"), "(HTTP 400: <html>)"),
        (Reply(400, {"error": "plain words"}), "(HTTP 400: plain words)"),
        (Reply(307, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), "has moved (HTTP 307)"),
        # Followed, it would take the question elsewhere.
        (Reply(302, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), "has moved (HTTP 302)"),
    ],
)
def test_a_refusal_is_one_line_at_once(tmp_path: Path, reply: Reply, message: str) -> None:
    with serving(lambda request, before: echo(request, before) if before < 2 else reply) as server:
        with pytest.raises(InputError) as caught:
            judge_at(server.base_url, tmp_path).ask(prompts(5))
        assert len(server.requests) == 3
    assert message in str(caught.value)
    assert "2 of 5 answers arrived and are kept" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_the_key_is_written_nowhere_even_if_the_server_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def telltale(request: Request, before: int) -> Reply:
        key = request.headers["Authorization"].split()[1]
        if before < 1:
            return failed(500, message=f"trouble with {key}")
        return said(f"I was given {key}") if before < 3 else failed(400, message=f"{key} is wrong")

    with serving(telltale) as server:
        judge = judge_at(server.base_url, tmp_path)
        with pytest.raises(ModeldiffError) as caught:
            judge.ask(prompts(5))
        kept = texts(judge_at(server.base_url, tmp_path), prompts(2))
    assert kept == ["I was given [key]"] * 2
    shown = [str(caught.value), repr(caught.value), capsys.readouterr().err, json.dumps(judge.identity()), judge.name]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(KEY not in text for text in shown)
    assert all(KEY.encode() not in content for content in files)


def test_over_the_budget_no_call_is_made(tmp_path: Path) -> None:
    with serving(echo) as server:
        judge = judge_at(server.base_url, tmp_path, max_calls=4)
        with pytest.raises(InputError, match=r"5 calls to .* are needed, but --judge-max-calls allows 4: allow 5"):
            judge.ask(prompts(5))
        assert server.requests == []
        judge.ask(prompts(3))
        with pytest.raises(InputError, match=r"2 calls to .* after the 3 made so far, .* allow 5"):
            judge.ask(prompts(5))
        assert len(server.requests) == 3
        # What is kept needs no budget.
        assert texts(judge_at(server.base_url, tmp_path, max_calls=0), prompts(3)) == answers_to(3)


def test_answers_that_are_empty_or_cut_say_so_and_are_kept(tmp_path: Path) -> None:
    replies = [said(""), said(None, "content_filter"), said(None, "length"), said("half an ans", "length")]
    with serving(lambda _, before: replies[before]) as server:
        judge = judge_at(server.base_url, tmp_path)
        found = [(answer.text, answer.reason) for answer in judge.ask(prompts(4))]
        assert judge_at(server.base_url, tmp_path).planned(prompts(4)) == 0
    assert found == [
        (None, "the answer is empty"),
        (None, "the answer is empty"),
        (None, "the answer is empty, cut at 77 tokens"),
        ("half an ans", "cut at 77 tokens"),
    ]


def test_a_server_with_other_names_for_the_limit_and_no_temperature_is_understood(tmp_path: Path) -> None:
    def newer(request: Request, before: int) -> Reply:
        for field in ("max_tokens", "temperature"):
            if field in request.body:
                return failed(400, message=f"unsupported: {field}", param=field)
        return echo(request, before)

    with serving(newer) as server:
        assert texts(judge_at(server.base_url, tmp_path), prompts(3)) == answers_to(3)
        assert len(server.requests) == 2 + 3
        assert server.requests[-1].body["max_completion_tokens"] == 77


def test_ctrl_c_leaves_what_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(echo) as server:
        judge = judge_at(server.base_url, tmp_path)
        _interrupt_joins(monkeypatch, after=lambda: len(server.requests) >= 3)
        with pytest.raises(KeyboardInterrupt):
            judge.ask(prompts(50))
        monkeypatch.undo()
        assert 0 < judge_at(server.base_url, tmp_path).planned(prompts(50)) < 50


def _interrupt_joins(monkeypatch: pytest.MonkeyPatch, after: Callable[[], bool]) -> None:
    """Waiting for a thread of the judge ends as Ctrl-C ends it, once `after` holds."""
    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if not thread.name.startswith("judge-"):
            return join(thread, timeout)
        while not after():
            join(thread, 0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
