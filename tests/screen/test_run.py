"""The screen of two tiny models, end to end: what it makes, what it makes again, what it says is missing."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.features.explain.stored import read_explanations
from modeldiff.features.impact.result import read_impact
from modeldiff.features.run import run as run_features
from modeldiff.features.score.result import read_scores
from modeldiff.features.settings import FeaturesSettings
from modeldiff.features.table import FeatureTable
from modeldiff.screen.run import FIELDS, SCREEN_NAME, Entry, read_screen, run
from modeldiff.workspace import Workspace
from tests.features.made_crosscoder import made_pair, publish
from tests.judge.fake_endpoint import failed, serving
from tests.screen.judges import knowing
from tests.screen.made import DOCUMENTS, N_ONLY, N_SHARED, Made, crosscoder, make, save_model, settings

STEPS = 7
MEASURED = ("features", "stitch", "impact")


def screen(made: Made, **changes: Any) -> dict[str, Any]:
    return read_screen(run(settings(**changes), made.workspace))


def listed(info: dict[str, Any]) -> dict[str, list[int]]:
    return {side: [one["id"] for one in found["list"]] for side, found in info["sides"].items()}


def refs(made: Made) -> list[str]:
    return [one.ref for one in made.workspace.artifacts()]


def made_since(made: Made, before: list[str]) -> list[str]:
    return [ref for ref in refs(made) if ref not in before]


def test_the_screen_names_what_it_rests_on_and_has_an_entry_per_feature(screened: Made) -> None:
    artifact = screened.workspace.find("screen")
    info = read_screen(artifact)
    assert set(info) == FIELDS
    assert (info["features"], info["crosscoder"], info["activations"]) == (
        "features:1", "crosscoder:1", "activations:1",
    )  # fmt: skip
    assert [info[kind] for kind in ("stitch", "impact", "explanation", "score")] == [
        "stitch:1", "impact:1", "explanation:1", "score:1",
    ]  # fmt: skip
    assert set(artifact.manifest.inputs) == {"features", "stitch", "impact", "explanation", "score"}
    assert info["judge"] is None
    assert list(info["sides"]) == ["A", "B"]
    assert artifact.metrics == {"listed_A": 3, "listed_B": 3}
    for side, found in info["sides"].items():
        lefts = [step["left"] for step in found["steps"]]
        assert len(lefts) == STEPS
        assert lefts[0] == N_ONLY + N_SHARED
        assert lefts == sorted(lefts, reverse=True)
        assert [one["rank"] for one in found["list"]] == [1, 2, 3]
        scores = [one["rank_score"] for one in found["list"]]
        assert scores == sorted(scores, reverse=True)
        assert {one["partition"] for one in found["list"]} <= {side, "shared"}
        assert set(found["list"][0]) == {field.name for field in dataclasses.fields(Entry)}


def test_the_figures_of_an_entry_are_those_of_the_artifacts_it_rests_on(screened: Made) -> None:
    workspace = screened.workspace
    info = read_screen(workspace.find("screen"))
    table, impact = FeatureTable(workspace.find("features")), read_impact(workspace.find("impact"))
    explained, scores = read_explanations(workspace.find("explanation")), read_scores(workspace.find("score"))
    for side, found in info["sides"].items():
        for one in found["list"]:
            row, own = table.row(one["id"]), ("r2_a", "r2_b")[side == "B"]
            assert one["r2_own"] == getattr(row, own)
            assert (one["density"], one["sources"]) == (row.density, row.sources)
            assert one["impact_own"] == impact.own(side)[one["id"]]
            assert one["impact_other"] == impact.other(side)[one["id"]]
            assert one["asymmetry"] == pytest.approx(
                (one["impact_own"] - one["impact_other"]) / (one["impact_own"] + one["impact_other"])
            )
            assert one["description"] == explained[one["id"]].text
            assert one["score"] == scores[one["id"]][side].score
            assert (one["score"] is None) == (one["score_missing"] is not None)


def test_one_side_alone(screened: Made) -> None:
    info = screen(screened, exclusive="A")
    assert list(info["sides"]) == ["A"]
    assert listed(info)["A"] == listed(read_screen(screened.workspace.find("screen", 1)))["A"]
    assert {one["partition"] for one in info["sides"]["A"]["list"]} <= {"A", "shared"}


def test_the_exclusive_partition_alone(screened: Made) -> None:
    info = screen(screened, partition="exclusive", top=20, score=False)
    for side, found in info["sides"].items():
        assert found["steps"][0]["left"] == N_ONLY
        assert {one["partition"] for one in found["list"]} == {side}


@pytest.mark.parametrize("top", [1, 20])
def test_the_list_is_at_most_as_long_as_asked(screened: Made, top: int) -> None:
    info = screen(screened, top=top, score=False)
    for found in info["sides"].values():
        assert len(found["list"]) == min(top, found["steps"][-1]["left"])


def test_the_same_again_makes_nothing(screened: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = refs(screened)
    assert run(settings(), screened.workspace).ref == "screen:1"
    assert made_since(screened, before) == []
    said = capsys.readouterr().err
    for kind in (*MEASURED, "explanation", "score", "screen"):
        assert f"{kind}:1 is up to date" in said


def test_forced_only_the_list_is_made_again(screened: Made) -> None:
    before = refs(screened)
    again = run(settings(), screened.workspace, force=True)
    assert made_since(screened, before) == [again.ref] == ["screen:2"]
    first = screened.workspace.find("screen", 1)
    assert (again.folder / SCREEN_NAME).read_bytes() == (first.folder / SCREEN_NAME).read_bytes()


def test_other_limits_measure_nothing_again(screened: Made) -> None:
    before = refs(screened)
    info = screen(screened, least_asymmetry=0.5, most_predictable=0.5, top=2)
    assert not {ref.partition(":")[0] for ref in made_since(screened, before)} & set(MEASURED)
    assert info["limits"]["least_asymmetry"] == 0.5
    assert all(one["asymmetry"] >= 0.5 for found in info["sides"].values() for one in found["list"])


def test_without_scores_they_are_missing_and_the_command_makes_them(screened: Made) -> None:
    before = refs(screened)
    info = screen(screened, score=False)
    assert made_since(screened, before) == ["screen:2"]
    assert info["score"] is None
    assert all(one["score"] is None for found in info["sides"].values() for one in found["list"])
    (one,) = (one for one in info["missing"] if one["evidence"].startswith("what pushing"))
    assert one["command"] == (
        "modeldiff screen --crosscoder crosscoder:1 --top 3 --least-firings 1 --most-density 1.0 "
        "--most-predictable 1.0 --twin 1.0 --least-asymmetry -1.0 --most-surface 1.0 --pairs 600 --samples 2"
    )


def test_without_a_judge_one_is_missing(screened: Made) -> None:
    info = screen(screened, exclusive="B")
    (one,) = info["missing"]
    assert "by a judge that reads texts" in one["evidence"]
    assert one["command"].startswith("modeldiff screen --crosscoder crosscoder:1 --exclusive B --top 3 ")
    assert one["command"].endswith(" --judge openai --judge-model NAME")


@pytest.mark.parametrize("limit", [{"least_firings": 10**6}, {"least_asymmetry": 0.999999999}])
def test_nothing_left_is_an_empty_list(screened: Made, limit: dict[str, Any]) -> None:
    before = refs(screened)
    info = screen(screened, **limit)
    assert listed(info) == {"A": [], "B": []}
    assert made_since(screened, before) == ["screen:2"]
    assert (info["explanation"], info["score"]) == (None, None)


def test_a_model_against_itself_lists_nothing(twins: Made) -> None:
    """Either model explains every feature alike and minds its removal alike, whatever the limits let through."""
    info = screen(twins)
    assert listed(info) == {"A": [], "B": []}
    impact = read_impact(twins.workspace.find("impact"))
    for side in ("A", "B"):
        shared = impact.asymmetry(side)[N_ONLY : N_ONLY + N_SHARED]
        torch.testing.assert_close(torch.from_numpy(shared), torch.zeros(N_SHARED).double(), atol=1e-3, rtol=0)


def test_the_standard_crosscoder_has_shared_features_only(pair: Made) -> None:
    publish(pair.workspace, crosscoder(n_only=0), pair.activations, "standard")
    info = screen(pair, score=False, partition="exclusive")
    assert info["crosscoder"] == "crosscoder:2"
    assert listed(info) == {"A": [], "B": []}
    info = screen(pair, score=False)
    assert [found["steps"][0]["left"] for found in info["sides"].values()] == [N_SHARED] * 2
    assert {one["partition"] for found in info["sides"].values() for one in found["list"]} <= {"shared"}


def test_a_feature_that_its_own_model_does_not_explain_beyond_chance_is_unknown(
    screened: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeldiff.features.verdict.LEGIBLE", math.inf)
    info = screen(screened, top=4)
    for found in info["sides"].values():
        assert found["steps"][3]["unknown"] == found["steps"][2]["left"]
        assert found["list"] == []


def test_the_features_of_the_screen_are_its_own(screened: Made) -> None:
    """Features that were measured otherwise are not taken for those with predictability."""
    run_features(FeaturesSettings(predictability=False, device="cpu"), screened.workspace)
    assert screen(screened, top=2, score=False)["features"] == "features:1"


def test_activations_without_texts_are_refused_before_anything_long(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    made_pair(workspace, texts=False)
    with pytest.raises(InputError, match="without texts: a screen needs them"):
        run(settings(), workspace)
    assert workspace.artifacts("stitch") == []


def test_models_that_were_moved_are_found_where_they_are_now(tmp_path: Path, texts: Path) -> None:
    old = save_model(tmp_path / "old", DOCUMENTS, seed=0)
    made = make(tmp_path / "moved", {"a": old, "b": old}, texts, crosscoder(alike=True))
    new = shutil.move(old, tmp_path / "new")
    moved = {"model_path_a": str(new), "model_path_b": str(new)}
    assert listed(screen(made, **moved)) == {"A": [], "B": []}


def judged(url: str, **changes: Any) -> dict[str, Any]:
    return {"judge": "openai", "judge_model": "m", "judge_base_url": url, "score": False, **changes}


def test_only_what_the_judge_finds_interpretable_is_kept(screened: Made) -> None:
    # Without a judge so many are described as with one are tried.
    wide = screen(screened, top=6, score=False)
    explained = read_explanations(screened.workspace.find("explanation"))
    tried = {side: [i for i in ids if explained[i].texts] for side, ids in listed(wide).items()}
    known = {"A": [tried["A"][1], tried["A"][3]], "B": [tried["B"][2]]}
    with serving(knowing(explained, {*known["A"], *known["B"]})) as endpoint:
        info = screen(screened, **judged(endpoint.base_url))
    assert listed(info) == known
    assert info["judge"] == "m"
    for side, found in info["sides"].items():
        assert found["judged"] == {"explained": len(listed(wide)[side]), "kept": len(found["list"])}
        assert [one["rank"] for one in found["list"]] == list(range(1, len(found["list"]) + 1))
        for one in found["list"]:
            assert (one["detection"], one["description"], one["concerning"]) == (1.0, "Something.", False)
    (one,) = info["missing"]
    assert "--judge openai --judge-model m" in one["command"]
    assert "--no-score" not in one["command"]


def test_a_judge_that_is_gone_stops_the_screen_and_what_was_measured_stays(pair: Made) -> None:
    with serving(lambda _, __: failed(500)) as endpoint:
        url = endpoint.base_url
        with pytest.raises(MachineError):
            screen(pair, **judged(url))
        assert [pair.workspace.artifacts(kind) != [] for kind in (*MEASURED, "explanation")] == [True] * 3 + [False]
        before = refs(pair)
        endpoint.answering = knowing({}, set())
        info = screen(pair, **judged(url))
    assert listed(info) == {"A": [], "B": []}  # it knows none
    assert made_since(pair, before) == ["explanation:1", "screen:1"]


def test_a_damaged_screen_is_named(screened: Made) -> None:
    artifact = screened.workspace.find("screen")
    (artifact.folder / SCREEN_NAME).write_text("{}")
    with pytest.raises(DamagedError, match=f"{SCREEN_NAME}: is damaged"):
        read_screen(artifact)
