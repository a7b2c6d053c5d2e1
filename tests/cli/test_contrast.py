"""`modeldiff contrast` and `modeldiff diff` as commands: their output, and bad input in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.workspace import Workspace
from tests.cli.conftest import Call
from tests.contrast.made_continuations import made_continuations, planted


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with continuations in which model A says "indeed" after "oak"."""
    folder = tmp_path_factory.mktemp("cli") / "ws"
    made_continuations(Workspace(folder), **planted())
    return folder


CONTRAST = ["contrast", "--continuations", "1", "--no-cause", "--device", "cpu"]


def test_text(workspace: Path, call: Call) -> None:
    code, out, _ = call(workspace, *CONTRAST)
    assert code == 0
    assert call(workspace, "contrast", "--show", "latest") == (0, out, "")
    assert out.startswith(" 1. after “oak”")
    assert "A says  indeed" in out
    assert "1 difference of more than 5%" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_the_differences_with_all_that_they_say(workspace: Path, call: Call) -> None:
    code, out, _ = call(workspace, *CONTRAST, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    assert found["ref"] == "contrast:1"
    assert {"found", "expected_by_chance", "rate", "smallest", "models", "settings", "metrics"} <= set(found)
    assert (found["found"], found["rate"]) == (1, 0.05)
    assert 0 <= found["expected_by_chance"] < 1
    (one,) = found["differences"]
    assert one["context"] == {"kind": "word", "name": "oak"}
    for side in "ab":
        for said in one[f"{side}_says"]:
            assert set(said) == {"word", "a", "b", "a_elsewhere", "b_elsewhere"}
    assert [said["word"] for said in one["a_says"]] == ["indeed"]
    assert one["verified"] is True
    assert one["effect"] > 0.5
    assert one["sources"] == {"code": 1.0}
    assert not one.get("cause")


def test_csv_has_a_row_for_each_difference(workspace: Path, call: Call) -> None:
    _, out, _ = call(workspace, *CONTRAST, "--csv")
    (row,) = csv.DictReader(io.StringIO(out))
    (one,) = json.loads(call(workspace, *CONTRAST, "--json")[1])["differences"]
    assert row["where"].startswith("after “oak”")
    assert (row["rank"], row["verified"], row["a_says"], row["side"]) == ("1", "True", "indeed", "A")
    assert [float(row[name]) for name in ("effect", "low", "any_word_b")] == [
        one["effect"], one["low"], one["any_word"]["b"]
    ]  # fmt: skip
    assert call(workspace, *CONTRAST, "--csv", "--json")[0] == 2


def test_json_has_the_unverified_candidates_with_all_alone(workspace: Path, call: Call) -> None:
    args = [*CONTRAST, "--smallest", "0.97"]
    _, out, _ = call(workspace, *args, "--json")
    assert json.loads(out)["differences"] == []
    _, out, _ = call(workspace, *args, "--json", "--all")
    shown = json.loads(out)
    assert "not_verified" not in shown
    assert {one["verified"] for one in shown["differences"]} == {False}
    _, out, _ = call(workspace, *args)
    assert out.startswith("Nothing beyond chance")
    _, out, _ = call(workspace, *args, "--all")
    assert "(did not hold on the other" in " ".join(out.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([*CONTRAST, "--crosscoder", "7"], "no crosscoder in"),
        (["contrast", "--continuations", "9"], "no continuations called '9'"),
        (["contrast", "--model-a", "x"], "both --model-a and --model-b"),
        (["contrast"], "modeldiff harvest"),
    ],
)
def test_bad_input_is_one_line(workspace: Path, fails: Callable[..., str], args: list[str], says: str) -> None:
    assert says in fails(2, workspace, *args)
