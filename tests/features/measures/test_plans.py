"""`--plan` of the measures whose time grows with the pairs that they look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modeldiff.crosscoder import load
from modeldiff.features.measures import Measure, measures
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from tests.features.made_crosscoder import publish
from tests.features.made_pair import Made

PLANNED = [one for one in measures() if one.rehearsed]


def test_which_measures_have_a_plan() -> None:
    """The others wait for a judge."""
    assert [one.name for one in PLANNED] == ["stitch", "impact", "match", "evaluate"]


@pytest.mark.parametrize("measure", PLANNED, ids=[one.name for one in PLANNED])
def test_a_plan_is_of_the_run_that_is_asked_for_and_leaves_nothing(
    measure: Measure, pair: Made, monkeypatch: pytest.MonkeyPatch, printed: Callable[..., str]
) -> None:
    workspace = pair.workspace
    run_stitch(StitchSettings(pairs=400, device="cpu"), workspace)
    publish(workspace, load(workspace.find("crosscoder")), pair.activations, "again")
    there = [one.ref for one in workspace.artifacts()]
    monkeypatch.setattr(type(measure), "rehearsed", 200)
    args = ["crosscoder:1", "crosscoder:2"] if measure.name == "match" else []
    options = [] if measure.name in ("stitch", "match") else ["--crosscoder", "1"]
    found: dict[str, Any] = json.loads(
        printed(workspace, measure.name, *args, *options, "--device", "cpu", "--plan", "--json")
    )
    assert found["pairs"] == pair.activations.metrics["pairs"]
    assert found["rehearsal"]["rehearsed"] == {"pairs": 200}
    parts = found["rehearsal"]["time"]["parts"]
    for name in measure.grows:  # a name that no progress has would leave the time as it is
        assert any(part.startswith(name) for part in parts), (name, list(parts))
    assert "time" in printed(workspace, measure.name, *args, *options, "--device", "cpu", "--plan")
    assert [one.ref for one in workspace.artifacts()] == there
