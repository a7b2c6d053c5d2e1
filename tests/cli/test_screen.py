"""`modeldiff screen`: what it prints, and what it says about bad input and a judge that is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.cli.main import run
from modeldiff.cli.screen import print_screen
from modeldiff.features.explain.stored import read_explanations
from modeldiff.screen.run import FIELDS
from modeldiff.workspace import Workspace
from tests.judge.fake_endpoint import failed, serving
from tests.screen.judges import knowing
from tests.screen.made import DOCUMENTS, Made, crosscoder, make, save_model

SMALL = ("--device", "cpu", "--pairs", "600", "--samples", "2", "--top", "3")
OPEN = ("--least-firings", "1", "--most-predictable", "1", "--twin", "1", "--least-asymmetry", "-1")
OPEN = (*OPEN, "--most-surface", "1", "--most-density", "1")
MARKUP = "[bold]see[/bold] [red] [/oops] and [link=x]"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between a test and its own server, no key, and no waiting before a call is repeated."""
    monkeypatch.setenv("no_proxy", "*")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("modeldiff.judge.openai._FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pair")
    texts = folder / "t.jsonl"
    texts.write_text("".join(json.dumps({"text": one}) + "\n" for one in DOCUMENTS), encoding="utf-8")
    models = {side: save_model(folder / side, DOCUMENTS, seed) for seed, side in enumerate("ab")}
    found = make(folder / "ws", models, texts, crosscoder())
    assert call(found.workspace, *OPEN) == 0
    return found


@pytest.fixture
def workspace(made: Made, tmp_path: Path) -> Workspace:
    """With `screen:1`."""
    shutil.copytree(made.workspace.folder, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def call(workspace: Workspace, *args: str) -> int:
    return tool(workspace, "screen", *SMALL, *args)


def tool(workspace: Workspace, *args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(workspace.folder), *args])
    return int(str(caught.value.code))


def is_narrow(out: str) -> bool:
    """All but the commands to copy, which stand on lines of their own."""
    return all(len(line) <= 80 for line in out.splitlines() if not line.startswith("  modeldiff "))


def test_the_tables_fit_80_columns_and_json_has_everything(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call(workspace, *OPEN) == 0
    out = capsys.readouterr().out
    assert is_narrow(out)
    assert "features the model has" in out
    assert "the short list 3 3" in " ".join(out.split())
    assert "A: 3 features" in out
    assert "B: 3 features" in out
    assert "modeldiff screen --crosscoder crosscoder:1 --top 3 --least-firings 1" in out
    assert call(workspace, *OPEN, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ref"] == "screen:1"
    assert set(found) >= FIELDS
    first = found["sides"]["A"]["list"][0]["id"]
    assert out.splitlines()[-1] == f"next: modeldiff features show {first} --features features:1"


def test_one_side(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call(workspace, *OPEN, "--exclusive", "A", "--no-score") == 0
    out = capsys.readouterr().out
    assert "A: 3 features" in out
    assert "B: " not in out
    assert "missing: what pushing the features does in both models:" in out


def test_an_empty_list_is_said(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call(workspace, *OPEN, "--least-asymmetry", "0.999999999") == 0
    out = capsys.readouterr().out
    assert "A: no feature passed every step" in out
    assert "B: no feature passed every step" in out
    assert "next:" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--top", "0"], "--top must be at least 1"),
        (["--exclusive", "shared"], "Invalid value for '--exclusive'"),
        (["--least-firings", "0"], "--least-firings must be at least 1"),
        (["--most-predictable", "0"], "--most-predictable must be above 0 and at most 1"),
        (["--most-surface", "nan"], "--most-surface must be above 0 and at most 1"),
        (["--least-asymmetry", "1"], "--least-asymmetry must be at least -1 and below 1"),
        (["--least-asymmetry", "nan"], "--least-asymmetry must be at least -1 and below 1"),
        (["--judge", "openai"], "--judge openai needs a model"),
        (["--crosscoder", "9"], "no crosscoder called '9'"),
    ],
)
def test_bad_input_is_one_line(
    workspace: Workspace, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call(workspace, *args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("modeldiff: ")
    assert message in last


def test_what_a_judge_says_is_no_markup(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(workspace, *OPEN, "--top", "6", "--no-score") == 0
    explained = read_explanations(workspace.find("explanation"))
    known = {feature for feature, one in explained.items() if one.texts}
    capsys.readouterr()
    with serving(knowing(explained, known, MARKUP)) as endpoint:
        judge = ["--judge", "openai", "--judge-model", "m", "--judge-base-url", endpoint.base_url, "--no-score"]
        assert call(workspace, *OPEN, *judge) == 0
    out = capsys.readouterr().out
    assert is_narrow(out)
    words = " ".join(out.split())
    assert "explained well (judge)" in out
    assert MARKUP in words
    assert tool(workspace, "features", "show", str(min(known)), "--features", "features:1") == 0
    assert MARKUP in " ".join(capsys.readouterr().out.split())


def test_a_judge_that_is_gone_is_exit_code_1_and_the_same_command_goes_on(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda _, __: failed(500)) as endpoint:
        command = [*OPEN, "--judge", "openai", "--judge-model", "m", "--judge-base-url", endpoint.base_url]
        before = [one.ref for one in workspace.artifacts()]
        capsys.readouterr()
        assert call(workspace, *command, "--no-score") == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("modeldiff: ")
        assert [one.ref for one in workspace.artifacts()] == before
        endpoint.answering = knowing({}, set())
        assert call(workspace, *command, "--no-score") == 0
    err = capsys.readouterr().err
    for kind in ("features", "stitch", "impact"):
        assert f"{kind}:1 is up to date" in err


def test_long_words_numbers_and_folds_fit(capsys: pytest.CaptureFixture[str]) -> None:
    entry: dict[str, Any] = {
        "rank": 10, "id": 16383, "partition": "shared", "r2_own": -0.123, "r2_other": -0.123, "impact_own": 123456.0,
        "impact_other": 0.0, "surface": -0.45, "score": None, "doubles": [16000, 16001], "concerning": True,
        "description": "w" * 300,
    }  # fmt: skip
    step = {"name": "hardly predictable from the other model", "left": 16384, "unknown": 1234}
    span = {"5%": -12345.678, "50%": 0.0, "95%": 12345.678}
    names = ("random_ratio", "random_asymmetry", "stitched_asymmetry", "surface")
    found = {"steps": [step], "judged": None, "list": [entry], "controls": dict.fromkeys(names, span)}
    limits = {"twin": 0.7, "most_predictable": 0.8, "least_asymmetry": 0.5, "most_surface": 0.6}
    missing = [{"evidence": "explanation, detection and ratings by a judge that reads texts", "command": "modeldiff x"}]
    info = {"features": "features:1", "crosscoder": "crosscoder:100", "limits": limits, "missing": missing}
    print_screen("screen:100", {**info, "sides": {"A": found, "B": found}})
    out = capsys.readouterr().out
    assert is_narrow(out)
    assert "16383s" in out
    assert "screen:100: features of crosscoder:100 left" in out  # no emoji
    assert out.count("16,384 (1,234 ?)") == 2
    assert "FLAGGED" in out
    assert "16000, 16001" in " ".join(out.split())


def test_features_says_which_evidence_is_there(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert tool(workspace, "features", "--device", "cpu", "--exclusive", "A") == 0
    out = capsys.readouterr().out
    assert "evidence: predictability, stitch:1, impact:1, explanation:1, score:1, screen:1\n" in out
    assert (
        "missing: match, evaluation; to have it:\n"
        "  modeldiff features match crosscoder:1 OTHER-CROSSCODER\n"
        "  modeldiff features evaluate --crosscoder crosscoder:1\n"
    ) in out
    assert tool(workspace, "features", "--device", "cpu", "--exclusive", "A", "--json") == 0
    evidence = {one["kind"]: one for one in json.loads(capsys.readouterr().out)["evidence"]}
    assert evidence["score"]["ref"] == "score:1"
    assert evidence["evaluation"] == {
        "kind": "evaluation",
        "ref": None,
        "command": "modeldiff features evaluate --crosscoder crosscoder:1",
    }


def test_show_has_the_impact_the_score_and_the_place_on_the_short_list(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call(workspace, *OPEN, "--json") == 0
    entries = json.loads(capsys.readouterr().out)["sides"]["A"]["list"]
    for one in entries:
        assert tool(workspace, "features", "show", str(one["id"]), "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["impact"]["ref"] == "impact:1"
        assert shown["impact"]["surface"] == one["surface"]
        impact = shown["impact"]["A"]
        assert [impact[name] for name in ("own", "other", "asymmetry")] == [
            one[name] for name in ("impact_own", "impact_other", "asymmetry")
        ]
        assert shown["score"]["A"]["direction"] == "A -> B"
        assert shown["score"]["A"]["score"] == one["score"]
        assert shown["screen"]["A"] == {"rank": one["rank"], "listed": 3, "double_of": None}
        assert tool(workspace, "features", "show", str(one["id"])) == 0
        out = capsys.readouterr().out
        assert "impact A      nats per window if removed: A " in out
        assert "score A -> B  " in out
        assert f"screen A      rank {one['rank']} of 3 (screen:1)" in out


def test_show_without_other_evidence_says_nothing_of_it(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = made.workspace
    outside = {one["id"] for found in _sides(workspace).values() for one in found["list"]}
    feature = next(i for i in range(18) if i not in outside)
    capsys.readouterr()
    assert tool(workspace, "features", "show", str(feature), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["score"] is None
    assert all(one["rank"] is None for key, one in shown["screen"].items() if key != "ref")


def _sides(workspace: Workspace) -> dict[str, Any]:
    from modeldiff.screen.run import read_screen

    sides: dict[str, Any] = read_screen(workspace.find("screen"))["sides"]
    return sides
