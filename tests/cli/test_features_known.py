"""What `modeldiff features` and `features show` say about evidence that other commands made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modeldiff.cli.main import run
from tests.features.made_pair import B_LOUD, LOUD, SHARED_LOUD, WIDTH, Made, make_pair, publish_stitch
from tests.judge.fake_endpoint import leave_alone, said, serving

FEATURES = (LOUD, SHARED_LOUD)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With impact:1 and score:1, which is about FEATURES alone."""
    made = make_pair(tmp_path_factory.mktemp("pair"))
    publish_stitch(made, torch.eye(WIDTH), "identity")
    numbers = [str(number) for number in FEATURES]
    with pytest.MonkeyPatch.context() as patch, serving(lambda *_: said("RATING: 4")) as server:
        leave_alone(patch)
        judge = ["--judge", "openai", "--judge-model", "wise", "--judge-base-url", server.base_url]
        small = ["--random-directions", "1", "--strength", "1", "--max-new-tokens", "2", "--prompt", "Well?"]
        for command in (
            ["impact", "--pairs", "200", "--samples", "2"],
            ["score", "--feature", *numbers, *judge, *small],
        ):
            assert tool(made, "features", *command, "--device", "cpu") == 0
    return made


@pytest.fixture
def pair(known: Made, tmp_path: Path) -> Made:
    return known.copy(tmp_path / "ws")


def tool(made: Made, *args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(made.workspace.folder), *args])
    return int(str(caught.value.code))


def test_features_says_which_evidence_is_there(pair: Made, capsys: pytest.CaptureFixture[str]) -> None:
    listing = ["features", "--device", "cpu", "--outlier-factor", "0", "--no-predictability", "--sort", "id"]
    capsys.readouterr()
    assert tool(pair, *listing) == 0
    out = capsys.readouterr().out
    assert "evidence: stitch:1, impact:1, score:1\n" in out
    assert (
        "missing: predictability, explain, match, evaluate; to have it:\n"
        "  modeldiff features --crosscoder crosscoder:1 --predictability\n"
        "  modeldiff features explain --features features:1\n"
        "  and 2 more commands (--json has all)\n"
    ) in out
    assert tool(pair, *listing, "--json") == 0
    evidence = {one["kind"]: one for one in json.loads(capsys.readouterr().out)["evidence"]}
    assert evidence["score"]["ref"] == "score:1"
    assert evidence["evaluate"] == {
        "kind": "evaluate",
        "ref": None,
        "command": "modeldiff features evaluate --crosscoder crosscoder:1",
    }


def test_show_has_the_impact_and_the_score(pair: Made, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert tool(pair, "features", "show", str(SHARED_LOUD), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["impact"]["ref"] == "impact:1"
    assert shown["impact"].keys() >= {"A", "B", "surface"}
    assert shown["impact"]["A"].keys() == {"own", "other", "asymmetry", "asymmetry_of_random"}
    assert shown["score"] == {
        "ref": "score:1",
        **{
            side: {"direction": f"{side} -> {other}", "score": 2.0, "missing": [], "of_random": 2.0}
            for side, other in (("A", "B"), ("B", "A"))
        },
    }
    assert tool(pair, "features", "show", str(SHARED_LOUD)) == 0
    out = capsys.readouterr().out
    assert "impact A      nats per window if removed: A " in out
    assert "impact B      nats per window if removed: B " in out
    assert "score A -> B  2.00 of 5 (random directions 2.00; score:1)" in out
    assert "score B -> A  2.00 of 5 (random directions 2.00; score:1)" in out


def test_show_without_a_score_says_nothing_of_it(pair: Made, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert tool(pair, "features", "show", str(B_LOUD), "--json") == 0
    assert json.loads(capsys.readouterr().out)["score"] is None
    assert tool(pair, "features", "show", str(B_LOUD)) == 0
    assert "score" not in capsys.readouterr().out
