"""An endpoint that is slow, wrong, rate-limited, flaky or dead: no answer that arrived is lost, and no key is shown."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.errors import InputError, MachineError, ModeldiffError
from modeldiff.judge.choice import open_judge
from modeldiff.judge.client import AnswerCache, Judge, Prompt
from modeldiff.judge.openai import Endpoint
from modeldiff.judge.settings import JudgeSettings
from tests.judge.fake_endpoint import Answering, Reply, Request, failed, said, serving

CPU = torch.device("cpu")
KEY = "sk-very-secret-123"
RETRIES = 1


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"feature {n}", "Be brief.", f"question {n}") for n in range(count)]


def echo(request: Request, before: int) -> Reply:
    return said(f"answer to {request.user}")


def answers_to(count: int) -> list[str]:
    return [f"answer to question {n}" for n in range(count)]


def first(count: int, reply: Reply) -> Answering:
    """This reply to the first requests, echoes afterwards."""
    return lambda request, before: reply if before < count else echo(request, before)


def settings_at(url: str | None, **values: Any) -> JudgeSettings:
    return JudgeSettings(judge="openai", judge_model="wise-model", judge_base_url=url, **values)


def judge_at(url: str, folder: Path, *, max_calls: int | None = None, **values: Any) -> Judge:
    given = {"key_env": "THE_KEY", "max_tokens": 77, "concurrency": 1, "timeout": 5.0} | values
    settings = settings_at(url, **{f"judge_{name}": value for name, value in given.items()})
    return Judge(Endpoint(settings, RETRIES), AnswerCache(folder), max_calls)


def texts(judge: Judge, asked: list[Prompt]) -> list[str | None]:
    return [answer.text for answer in judge.answers(asked)]


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


def test_the_key_of_the_cache_is_the_question_and_who_is_asked(tmp_path: Path) -> None:
    one = Prompt("a", "system", "user")
    with serving(echo) as server, serving(echo) as other:
        judge = judge_at(server.base_url, tmp_path)
        judge.answers([one])
        for changed, calls in (({"id": "b"}, 0), ({"system": "x"}, 1), ({"user": "x"}, 1), ({"attempt": 1}, 1)):
            assert judge.planned([dataclasses.replace(one, **changed)]) == calls
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
    [failed(500, message="oops"), Reply(502, b"<html>bad gateway</html>"), failed(408), failed(429, message="slow"),
     Reply(drop=True), Reply(hang=True)],
)  # fmt: skip
def test_trouble_that_passes_is_waited_for(tmp_path: Path, trouble: Reply) -> None:
    timeout = 0.15 if trouble.hang else 5.0
    with serving(first(RETRIES, trouble)) as server:
        assert texts(judge_at(server.base_url, tmp_path, timeout=timeout), prompts(2)) == answers_to(2)
        assert len(server.requests) == RETRIES + 2


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "endless",
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK, b"X-Slow: 1\r\n"),
        (OK + CHUNKED, b"1\r\n \r\n"),
        (OK + b"Content-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 400 Bad Request\r\n" + CHUNKED, b"1\r\n \r\n"),
        (b"HTTP/1.1 500 Oops\r\n" + CHUNKED, b"1\r\n \r\n"),
    ],
)
def test_the_timeout_is_for_the_whole_exchange(tmp_path: Path, endless: tuple[bytes, bytes]) -> None:
    with serving(first(99, Reply(endless=endless))) as server:
        with pytest.raises(MachineError, match=r"gave no answer in 2 tries \(Request timed out"):
            judge_at(server.base_url, tmp_path, timeout=0.1).answers(prompts(1))
        assert len(server.requests) == 1 + RETRIES


def test_an_answer_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeldiff.judge.openai._LARGEST_ANSWER", 100_000)
    body = (OK + CHUNKED, b"2710\r\n" + b" " * 10_000 + b"\r\n")
    too_large = r"gave no answer in 2 tries \(the answer is larger than 16 MiB\)"
    with serving(first(99, Reply(endless=body))) as server, pytest.raises(MachineError, match=too_large):
        judge_at(server.base_url, tmp_path, timeout=60).answers(prompts(1))


def test_where_a_loop_runs_already_as_in_a_notebook(tmp_path: Path) -> None:
    async def cell() -> list[str | None]:
        return texts(judge_at(server.base_url, tmp_path), prompts(3))

    with serving(echo) as server:
        assert asyncio.run(cell()) == answers_to(3)


@pytest.mark.parametrize("body", [b"{ not json", b"<html>welcome</html>", [1, 2], {}, {"choices": [{"message": None}]}])
def test_what_is_not_a_completion_is_said(tmp_path: Path, body: object) -> None:
    with serving(first(99, Reply(body=body))) as server, pytest.raises(MachineError, match="is not a chat completion"):
        judge_at(server.base_url, tmp_path).answers(prompts(1))


@pytest.mark.parametrize(
    ("trouble", "concurrency"),
    [(failed(500), 1), (failed(500), 4), (Reply(drop=True), 4), (Reply(hang=True), 4), (failed(429), 4)],
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
            judge.answers(prompts(20))
        server.answering, before = echo, len(server.requests)
        judge = judge_at(server.base_url, tmp_path, concurrency=concurrency)
        assert judge.planned(prompts(20)) == 13
        assert texts(judge, prompts(20)) == answers_to(20)
        assert sorted(server.users[before:] + served) == sorted(p.user for p in prompts(20))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (failed(400, message="context too long\nby far"), "refuses the request (HTTP 400: context too long by far)"),
        (failed(401, message=f"bad key {KEY}"), "(HTTP 401): the key in THE_KEY is not accepted"),
        (failed(404, message="no model 'wise-model'"), "check --judge-base-url and --judge-model"),
        (failed(422, message=f"what is {KEY}?"), "(HTTP 422: what is [key]?)"),
        (Reply(400, b"<html>"), "(HTTP 400: <html>)"),
        (Reply(400, {"error": "plain words"}), "(HTTP 400: plain words)"),
        # Followed, it would take the question elsewhere.
        (Reply(307, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), "was not found (HTTP 307: "),
    ],
)
def test_a_refusal_is_one_line_at_once(tmp_path: Path, reply: Reply, message: str) -> None:
    with serving(lambda request, before: echo(request, before) if before < 2 else reply) as server:
        with pytest.raises(InputError) as caught:
            judge_at(server.base_url, tmp_path).answers(prompts(5))
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
            judge.answers(prompts(5))
        kept = texts(judge_at(server.base_url, tmp_path), prompts(2))
    assert kept == ["I was given [key]"] * 2
    shown = [str(caught.value), repr(caught.value), capsys.readouterr().err, json.dumps(judge.identity), judge.name]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(KEY not in text for text in shown)
    assert all(KEY.encode() not in content for content in files)


def test_over_the_budget_no_call_is_made(tmp_path: Path) -> None:
    with serving(echo) as server:
        judge = judge_at(server.base_url, tmp_path, max_calls=4)
        with pytest.raises(InputError, match=r"5 calls to .* are needed, but --judge-max-calls allows 4: allow 5"):
            judge.answers(prompts(5))
        assert server.requests == []
        judge.answers(prompts(3))
        with pytest.raises(InputError, match=r"2 calls to .* after the 3 made so far, .* allow 5"):
            judge.answers(prompts(5))
        # What is kept needs no budget.
        assert texts(judge_at(server.base_url, tmp_path, max_calls=0), prompts(3)) == answers_to(3)
        with pytest.raises(InputError, match=r"1001 calls .* but --judge-max-calls allows 1000"):
            open_judge(settings_at(server.base_url), tmp_path, CPU).answers(prompts(1001))
        assert len(server.requests) == 3


def test_answers_that_are_empty_or_cut_say_so(tmp_path: Path) -> None:
    replies = [said(""), said(None, "content_filter"), said(None, "length"), said("half an ans", "length")]
    with serving(lambda _, before: replies[before]) as server:
        found = judge_at(server.base_url, tmp_path).answers(prompts(4))
    assert [(answer.text, answer.reason) for answer in found] == [
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


def test_a_killed_run_has_kept_every_answer_that_arrived(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom modeldiff.judge.client import Prompt\n"
        "from modeldiff.judge.choice import open_judge\nfrom modeldiff.judge.settings import JudgeSettings\n"
        "options = dict(judge='openai', judge_model='wise-model', judge_base_url=sys.argv[1], judge_concurrency=1)\n"
        "asked = [Prompt(f'feature {n}', 'Be brief.', f'question {n}') for n in range(20)]\n"
        "open_judge(JudgeSettings(**options), Path(sys.argv[2]), 'cpu').answers(asked)\n"
    )
    started: list[subprocess.Popen[bytes]] = []

    def killing(request: Request, before: int) -> Reply:
        if before == 12:
            started[0].kill()
        return echo(request, before)

    with serving(killing) as server:
        with subprocess.Popen([sys.executable, "-c", code, server.base_url, str(tmp_path)]) as process:
            started.append(process)
        assert process.returncode == -signal.SIGKILL
        judge = open_judge(settings_at(server.base_url), tmp_path, CPU)
        # One at a time: when the thirteenth call came, twelve answers had arrived.
        assert judge.planned(prompts(20)) == 8
        judge.answers(prompts(20))
        assert len(server.requests) == 13 + 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "oracle"}, "--judge expects none, local or openai, found 'oracle'"),
        ({"judge": "local"}, "--judge local needs a model: name it with --judge-model"),
        ({"judge": "openai", "judge_model": " "}, "--judge openai needs a model: name it with --judge-model"),
        *(
            ({"judge_base_url": url}, "--judge-base-url is not a URL like https://api.openai.com/v1")
            for url in ("localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://[half/v1",
                        "http://a..b/v1", "http://host/a b", "https://me:sk-secret@host/v1", "https://h/v1?k=sk-secret")
        ),
        ({"judge_key_env": "sk-secret-123"}, "--judge-key-env expects the name of an environment variable"),
        ({"judge_max_calls": -1}, "--judge-max-calls must be at least 0"),
        ({"judge_max_tokens": 0}, "--judge-max-tokens must be at least 1"),
        ({"judge_timeout": float("nan")}, "--judge-timeout must be above 0"),
    ],
)  # fmt: skip
def test_senseless_settings_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        JudgeSettings(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_endpoint_and_key_come_from_the_environment_unless_they_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda request, _: said(request.headers["Authorization"][-4:])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
        # A server of one's own needs no key.
        assert texts(open_judge(settings_at(server.base_url), tmp_path / "own", CPU), prompts(1)) == ["none"]
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url + "/")
        judge = open_judge(settings_at(None, judge_key_env="THE_KEY"), tmp_path, CPU)
        assert texts(judge, prompts(1)) == ["-123"]
        asked = {"judge": "openai", "endpoint": server.base_url, "model": "wise-model"}
        assert judge.identity == {**asked, "temperature": 0, "max_tokens": 1024}
        assert judge.name == f"openai:wise-model at {server.base_url}"


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({}, {"judge": "none"}, "give --judge local --judge-model MODEL"),
        ({}, {}, "key is not set: put it into OPENAI_API_KEY, or name another"),
        ({"OPENAI_BASE_URL": "http://localhost/v1"}, {"judge_key_env": "MY_KEY"}, "not set: put it into MY_KEY"),
        ({"OPENAI_API_KEY": "sk-secret\nX-Evil: 1"}, {}, "OPENAI_API_KEY holds characters that no key has"),
        ({"OPENAI_API_KEY": "sk-secret-ключ"}, {}, "OPENAI_API_KEY holds characters that no key has"),
        ({"OPENAI_BASE_URL": "http://u:secret@h/v1"}, {}, "the environment's OPENAI_BASE_URL is not a URL"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], options: dict[str, Any], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        open_judge(dataclasses.replace(settings_at(None), **options), tmp_path, CPU)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
