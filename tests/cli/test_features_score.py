"""`modeldiff features score`: what it prints, and what it says about bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modeldiff.cli.main import run
from tests.features.made_pair import LOUD, WIDTH, Made, make_pair, publish_stitch
from tests.judge.fake_endpoint import Reply, Request, leave_alone, said, serving


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_alone(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(made: Made, tmp_path: Path) -> Made:
    return made.copy(tmp_path / "ws")


@pytest.fixture
def judge() -> Iterator[list[str]]:
    """The options that name a judge, who finds every push strong and the two models' texts half alike."""

    def answer(request: Request, _: int) -> Reply:
        both = "Two language models" in request.body["messages"][0]["content"]
        return said(f"RATING: {3 if both else 4}")

    with serving(answer) as server:
        yield ["--judge", "openai", "--judge-model", "wise", "--judge-base-url", server.base_url]


def call(pair: Made, *args: str) -> int:
    small = ["--device", "cpu", "--random-directions", "2", "--max-new-tokens", "2", "--strength", "1"]
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(pair.workspace.folder), "features", "score", *small, *args])
    return int(str(caught.value.code))


def test_the_tables_fit_80_columns_and_json_has_everything(
    pair: Made, judge: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    capsys.readouterr()
    assert call(pair, *judge) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    groups = ["A-exclusive A -> B", "B-exclusive B -> A", "shared A -> B", "shared B -> A", "random A -> B",
              "random B -> A"]  # fmt: skip
    first = next(i for i, line in enumerate(lines) if line.startswith("A-exclusive"))
    assert [line[:18].strip() for line in lines[first : first + 6]] == groups
    assert lines[first].split()[4:] == ["3", "0", "0", "3.00", "3.00", "3.00", "0%"]
    assert "not st.: rated below 3 on its own model (features: no score)." in lines
    assert any(line.rstrip().endswith("3 3 3") for line in lines)
    assert any(line.startswith("A high score: no counterpart was found by this stitch") for line in lines)
    assert call(pair, *judge, "--json") == 0
    shown = capsys.readouterr()
    assert "score:1 is up to date" in shown.err
    found = json.loads(shown.out)
    assert found["ref"] == "score:1"
    assert len(found["score"]["rows"]) == 3 + 3 + 2 * 3 + 2 * 2
    assert {group["partition"] for group in found["score"]["groups"]} == {"A", "B", "shared", "random"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "needs a judge that rates what the models write: give --judge local --judge-model MODEL"),
        (["--judge", "local", "--judge-model", "m"], "no stitch of activations:1 yet"),
        (["--judge", "openai"], "--judge openai needs a model"),
        (["--judge", "local", "--judge-model", "m", "--features", "9"], "no features called '9'"),
    ],
)
def test_bad_input_is_one_line(pair: Made, args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call(pair, *args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("modeldiff: ")
    assert message in last


def test_some_features(pair: Made, judge: list[str]) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    assert call(pair, *judge, "--feature", str(LOUD), "4", "--json", "--strength", "0.5", "4") == 0
    score = pair.workspace.find("score")
    rows = json.loads((score.folder / "score.json").read_text())["rows"]
    chosen = [(row["number"], row["source"]) for row in rows if row["partition"] != "random"]
    assert chosen == [(LOUD, "A"), (4, "A"), (4, "B")]
