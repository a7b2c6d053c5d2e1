"""From settings to a judge: what is missing is said before anything is asked, and no secret gets into a file."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.errors import InputError
from modeldiff.judge.opening import open_judge
from modeldiff.judge.settings import JudgeSettings
from modeldiff.settings import field_docs, setting, settings
from tests.judge.fake_endpoint import Reply, Request, said, serving
from tests.judge.test_openai import echo, prompts

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "oracle"}, "--judge expects none, local or openai, found 'oracle'"),
        ({"judge": "local"}, "--judge local needs a model: name it with --judge-model"),
        ({"judge": "openai", "judge_model": " "}, "--judge openai needs a model: name it with --judge-model"),
        ({"judge_base_url": "localhost:8000"}, "--judge-base-url is not a URL"),
        ({"judge_base_url": "ftp://host/v1"}, "--judge-base-url is not a URL"),
        ({"judge_base_url": "http://"}, "--judge-base-url is not a URL"),
        ({"judge_base_url": "http://host:port/v1"}, "--judge-base-url is not a URL"),
        ({"judge_base_url": "http://[half/v1"}, "--judge-base-url is not a URL"),
        ({"judge_base_url": "http://a..b/v1"}, "--judge-base-url is not a URL"),
        ({"judge_base_url": "http://host/a b"}, "--judge-base-url is not a URL"),
        ({"judge_base_url": "https://me:sk-secret@host/v1"}, "may hold no user name, password or query"),
        ({"judge_base_url": "https://host/v1?key=sk-secret"}, "may hold no user name, password or query"),
        ({"judge_key_env": "sk-secret-123"}, "--judge-key-env expects the name of an environment variable"),
        ({"judge_max_calls": -1}, "--judge-max-calls must be at least 0"),
        ({"judge_max_tokens": 0}, "--judge-max-tokens must be at least 1"),
        ({"judge_concurrency": 0}, "--judge-concurrency must be at least 1"),
        ({"judge_timeout": 0.0}, "--judge-timeout must be above 0"),
        ({"judge_timeout": float("nan")}, "--judge-timeout must be above 0"),
    ],
)
def test_senseless_settings_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        JudgeSettings(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_settings_are_described_and_load_nothing_heavy() -> None:
    assert set(field_docs(JudgeSettings)) == {field.name for field in dataclasses.fields(JudgeSettings)}
    code = (
        "import sys, modeldiff.judge.settings, modeldiff.judge\n"
        "print([n for n in ('torch', 'transformers', 'numpy', 'h5py', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_stage_may_inherit_them(tmp_path: Path) -> None:
    @settings
    class StageSettings(JudgeSettings):
        """A stage with a judge."""

        sample: int = setting(default=3)
        """How many."""

    made = StageSettings(judge="local", judge_model="m", sample=5)
    assert StageSettings(**made.to_json()) == made
    assert made.result_json() == {"judge": "local", "sample": 5}
    with pytest.raises(InputError, match="--judge-max-calls must be at least 0"):
        StageSettings(judge_max_calls=-5)


def test_a_killed_run_has_kept_every_answer_that_arrived(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from modeldiff.judge.opening import open_judge\nfrom modeldiff.judge.settings import JudgeSettings\n"
        "from modeldiff.judge.base import Prompt\n"
        "options = dict(judge='openai', judge_model='m', judge_base_url=sys.argv[1], judge_concurrency=1)\n"
        "asked = [Prompt(f'feature {n}', 'similarity', 'Be brief.', f'question {n}') for n in range(20)]\n"
        "open_judge(JudgeSettings(**options), Path(sys.argv[2]), 'cpu').ask(asked)\n"
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
        options = JudgeSettings(judge="openai", judge_model="m", judge_base_url=server.base_url)
        judge = open_judge(options, tmp_path, CPU)
        # One at a time: when the thirteenth call came, twelve answers had arrived.
        assert judge.planned(prompts(20)) == 8
        judge.ask(prompts(20))
        assert len(server.requests) == 13 + 8


def test_without_a_judge_there_is_none_to_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"give --judge local .* or --judge openai"):
        open_judge(JudgeSettings(), tmp_path, CPU)


def test_the_endpoint_and_key_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = JudgeSettings(judge="openai", judge_model="wise-model", judge_key_env="MY_KEY")
    with serving(lambda request, _: said(request.headers["Authorization"][-3:])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url + "/")
        monkeypatch.setenv("MY_KEY", " sk-secret-123\n")
        judge = open_judge(options, tmp_path, CPU)
        assert [answer.text for answer in judge.ask(prompts(1))] == ["123"]
        assert judge.identity() == {
            "judge": "openai",
            "endpoint": server.base_url,
            "model": "wise-model",
            "temperature": 0,
            "max_tokens": 1024,
        }
        assert judge.name == f"openai:wise-model at {server.base_url}"
    assert "secret" not in (tmp_path / "answers.jsonl").read_text()


def test_a_setting_beats_the_environment_and_a_server_of_ones_own_needs_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with serving(lambda request, _: said(request.headers["Authorization"])) as server:
        options = JudgeSettings(judge="openai", judge_model="m", judge_base_url=server.base_url)
        assert [answer.text for answer in open_judge(options, tmp_path, CPU).ask(prompts(1))] == ["Bearer none"]


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({}, {}, "key is not set: put it into OPENAI_API_KEY, or name another"),
        ({"OPENAI_BASE_URL": "http://localhost/v1"}, {"judge_key_env": "MY_KEY"}, "not set: put it into MY_KEY"),
        ({"OPENAI_API_KEY": "sk-secret\nX-Evil: 1"}, {}, "OPENAI_API_KEY holds characters that no key has"),
        ({"OPENAI_API_KEY": "sk-secret-ключ"}, {}, "OPENAI_API_KEY holds characters that no key has"),
        ({"OPENAI_BASE_URL": "http://u:secret@h/v1"}, {}, "the environment's OPENAI_BASE_URL may hold no user name"),
    ],
)
def test_what_the_environment_lacks_is_said_before_anything_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    options: dict[str, Any],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        open_judge(JudgeSettings(judge="openai", judge_model="m", **options), tmp_path, CPU)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_endpoint_has_a_budget_even_if_none_is_set(tmp_path: Path) -> None:
    options = JudgeSettings(judge="openai", judge_model="m", judge_base_url="http://127.0.0.1:1/v1")
    with pytest.raises(InputError, match=r"1001 calls .* but --judge-max-calls allows 1000"):
        open_judge(options, tmp_path, CPU).ask(prompts(1001))
