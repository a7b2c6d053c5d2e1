"""What `modeldiff features` and its subcommands `stitch` and `show` print, what other commands made included."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeldiff.cli.main import run
from modeldiff.workspace import Workspace
from tests.cli.conftest import Call
from tests.cli.test_startup import loaded_by
from tests.features.made_pair import B_LOUD, LOUD, SHARED_LOUD, WIDTH, Made, make_pair, publish_stitch
from tests.judge.fake_endpoint import leave_alone, said, serving
from tests.made_activations import make_activations

FEATURES = (LOUD, SHARED_LOUD)
LISTING = ("features", "--device", "cpu", "--outlier-factor", "0", "--no-predictability", "--sort", "id")


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
            with pytest.raises(SystemExit, match="0"):
                run(["--workspace", str(made.workspace.folder), "features", *command, "--device", "cpu"])
    return made


@pytest.fixture
def tool(known: Made, tmp_path: Path, call: Call) -> Callable[..., str]:
    """Run a command on the made pair; what it prints."""
    folder = known.copy(tmp_path / "ws").workspace.folder

    def made(*args: str) -> str:
        code, out, _ = call(folder, *args)
        assert code == 0
        return out

    return made


def test_features_says_which_evidence_is_there(tool: Callable[..., str]) -> None:
    assert "; --numbers: R², twins, what is missing\n" in tool(*LISTING)
    out = tool(*LISTING, "--numbers")
    assert "evidence: stitch:1, impact:1, score:1\n" in out
    assert (
        "missing: predictability, explain, match, evaluate; to have it:\n"
        "  modeldiff features --crosscoder crosscoder:1 --predictability\n"
        "  modeldiff features explain --features features:1\n"
        "  modeldiff features match crosscoder:1 OTHER-CROSSCODER\n"
        "  modeldiff features evaluate --crosscoder crosscoder:1\n"
    ) in out
    evidence = {one["kind"]: one for one in json.loads(tool(*LISTING, "--json"))["evidence"]}
    assert evidence["score"]["ref"] == "score:1"
    command = "modeldiff features evaluate --crosscoder crosscoder:1"
    assert evidence["evaluate"] == {"kind": "evaluate", "ref": None, "command": command}


@pytest.mark.parametrize("part", [("--exclusive", "A"), ("--exclusive", "B"), ("--shared",), ()])
def test_text_and_json_list_the_same_features_and_count_the_dead(tool: Callable[..., str], part: tuple[str]) -> None:
    found = json.loads(tool(*LISTING, *part, "--top", "100", "--json"))
    alive = found["candidates"] - found["dead"]
    assert found["dead"] > 0
    assert len(found["features"]) == alive
    assert all(one["density"] > 0 for one in found["features"])
    if part:
        assert {one["partition"] for one in found["features"]} == {part[-1].removeprefix("--")}
    shown = tool(*LISTING, *part, "--top", "100")
    assert f"{alive} of {alive} alive, by id" in shown
    assert f"{found['dead']} of {found['candidates']} never fire" in shown


def test_a_feature_is_one_line_of_words_and_the_rest_is_at_most_six(tool: Callable[..., str]) -> None:
    lines = tool(*LISTING[:5], "--sort", "id").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["id", "in", "fires", "on", "in", "context", "verdict", "fires"]
    data = json.loads(tool(*LISTING[:5], "--sort", "id", "--json"))["features"]
    rows = [line.split() for line in lines[2 : 2 + len(data)]]
    assert len(lines) <= 2 + len(data) + 6
    assert [row[0] for row in rows] == [str(one["id"]) for one in data]
    for row, one in zip(rows, data, strict=True):
        assert row[1] == {"A": "A", "B": "B", "shared": "both"}[one["partition"]]
        assert one["words"][0]["word"].startswith(row[2].strip(","))
        assert row[-2:] == [one["verdict"], f"{one['density']:.2%}"]


def test_what_was_measured_is_read_without_torch(known: Made) -> None:
    commands = [LISTING, (*LISTING, "--numbers"), (*LISTING, "--csv"), ("features", "show", str(SHARED_LOUD))]
    printed, loaded = loaded_by([["--workspace", str(known.workspace.folder), *one] for one in commands])
    assert "impact A      nats per window if removed: A " in printed
    heavy = {"torch", "transformers", "scipy", "sklearn", "matplotlib"}
    assert {command: names & heavy for command, names in loaded.items() if names & heavy} == {}


def test_a_plan_is_of_all_pairs_and_makes_nothing(known: Made, tool: Callable[..., str]) -> None:
    before = tool("workspace", "list", "--json")
    planned = json.loads(tool(*LISTING, "--plan", "--json"))
    assert planned["pairs"] == known.activations.metrics["pairs"]
    assert "features: pass over the activations" in planned["rehearsal"]["time"]["parts"]
    assert tool("workspace", "list", "--json") == before
    shown = tool(*LISTING, "--plan")
    assert "plan: nothing was kept" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_json_is_slim_full_has_the_spans_and_csv_a_row_for_each(
    known: Made, tool: Callable[..., str], fails: Callable[..., str]
) -> None:
    slim, full = (json.loads(tool(*LISTING, "--json", *more))["features"] for more in ((), ("--full",)))
    assert [one["id"] for one in slim] == [one["id"] for one in full]
    for small, large in zip(slim, full, strict=True):
        best = large["examples"][0]
        assert small["example"] == f"{best['before']}[[{best['word']}]]{best['after']}"
        assert {**small, "examples": large["examples"]} == {**large, "example": small["example"]}
        assert best["tokens"].keys() == {"a", "b"}
    rows = list(csv.DictReader(io.StringIO(tool(*LISTING, "--csv"))))
    assert [(row["id"], row["partition"], float(row["density"])) for row in rows] == [
        (str(one["id"]), one["partition"], one["density"]) for one in slim
    ]
    shown = json.loads(tool("features", "show", str(LOUD), "--json"))
    assert shown["examples"][0].keys() & {"tokens", "pieces"} == set()
    assert "tokens" in json.loads(tool("features", "show", str(LOUD), "--json", "--full"))["examples"][0]
    for args in (LISTING, ("features", "show", str(LOUD))):
        assert "--full goes with --json" in fails(2, known.workspace.folder, *args, "--full")


def test_what_is_listed_says_when_nothing_is_exclusive(tool: Callable[..., str]) -> None:
    """The two models are one: whatever is called exclusive is called so by chance."""
    for part in ((), ("--anywhere",)):
        asked = (*LISTING[:5], "--exclusive", "A", *part)
        out, listed = tool(*asked), json.loads(tool(*asked, "--json"))["features"]
        assert "Nothing is exclusive to A beyond chance: " in out
        leads = [one for one in listed if one["partition"] == "shared" and one["verdict"] == "exclusive"]
        assert ("What is in both models is what chance is measured on" in out) == bool(leads)


def test_show_has_the_impact_and_the_score(tool: Callable[..., str]) -> None:
    shown = json.loads(tool("features", "show", str(SHARED_LOUD), "--json"))
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
    out = tool("features", "show", str(SHARED_LOUD))
    assert "impact A      nats per window if removed: A " in out
    assert "impact B      nats per window if removed: B " in out
    assert "score A -> B  2.00 of 5 (random directions 2.00; score:1)" in out
    assert "score B -> A  2.00 of 5 (random directions 2.00; score:1)" in out
    assert json.loads(tool("features", "show", str(B_LOUD), "--json"))["score"] is None
    assert "score" not in tool("features", "show", str(B_LOUD))


def test_stitch_as_a_table_and_as_json(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "ws"
    x = torch.randn(1500, 12, generator=torch.Generator().manual_seed(0))
    make_activations(Workspace(folder), x[:, :8], x[:, 2:], shard_pairs=500)
    code, out, _ = call(folder, "features", "stitch", "--device", "cpu", "--name", "both")
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "stitch:1 of activations:1"
    overall = {line[:6]: line.split()[-3:-1] for line in lines if line.startswith(("A -> B", "B -> A"))}
    # Six of B's ten dimensions are A's, six of A's eight are B's.
    assert {which: float(r2) for which, (r2, _) in overall.items()} == pytest.approx(
        {"A -> B": 0.6, "B -> A": 0.75}, abs=0.05
    )
    assert all(abs(float(null)) < 0.1 for _, null in overall.values())
    _, out, err = call(folder, "features", "stitch", "--device", "cpu", "--activations", "latest", "--json")
    found = json.loads(out)
    assert "stitch:1 is up to date" in err
    assert (found["ref"], found["name"], found["activations"]) == ("stitch:1", "both", "activations:1")
    for direction in ("a_to_b", "b_to_a"):
        assert {"r2", "null_r2", "ridge"} == found["maps"][direction].keys()
        assert found["maps"][direction]["r2"] == found["metrics"][direction]["r2"]
    for args in (["list", "--kind", "stitch"], ["verify", "stitch:1"]):
        code, out, _ = call(folder, "workspace", *args)
        assert code == 0
        assert "stitch:1" in out or "1 artifacts verified, 0 damaged" in out
