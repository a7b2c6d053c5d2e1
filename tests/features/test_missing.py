"""Which evidence about features is there: found by what it was made from, never by being the latest."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeldiff.features.measures import MEASURES, measures
from modeldiff.features.missing import PREDICTABILITY, Evidence, evidence_about, made_about
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Artifact, Order, Workspace, produce
from tests.features.made_crosscoder import MadeSettings, made_pair, publish, shared_only, sparse_pairs
from tests.made_activations import make_activations

KINDS = (PREDICTABILITY, *MEASURES)
SCORE = next(one for one in measures() if one.name == "score")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """activations:1, crosscoder:1 and features:1."""
    made = Workspace(tmp_path / "ws")
    made_pair(made)
    measure(made)
    return made


def measure(workspace: Workspace, **changes: str) -> Artifact:
    return run_features(FeaturesSettings(predictability=False, device="cpu", outlier_factor=0.0, **changes), workspace)


def add(workspace: Workspace, kind: str, label: str = "", **inputs: Artifact) -> Artifact:
    """An artifact of a kind that was made from these; nothing but its manifest matters."""

    def build(work: object) -> dict[str, int]:
        return {}

    made_from = {name.replace("_", " "): one.as_input() for name, one in inputs.items()}
    return produce(workspace, Order(kind, MadeSettings(label=label or kind), made_from, 1), build)


def found(workspace: Workspace, features: Artifact | None = None) -> dict[str, Evidence]:
    about = evidence_about(workspace, features or workspace.find("features", 1))
    assert [one.kind for one in about] == list(KINDS)
    return {one.kind: one for one in about}


def there(workspace: Workspace, features: Artifact | None = None) -> dict[str, str]:
    return {kind: one.ref for kind, one in found(workspace, features).items() if one.ref is not None}


def test_nothing_but_the_features_and_the_command_of_each_kind(workspace: Workspace) -> None:
    assert there(workspace) == {}
    assert {kind: one.command for kind, one in found(workspace).items()} == {
        "predictability": "modeldiff features --crosscoder crosscoder:1 --predictability",
        "stitch": "modeldiff features stitch --activations activations:1",
        "impact": "modeldiff features impact --crosscoder crosscoder:1",
        "explain": "modeldiff features explain --features features:1",
        "score": "modeldiff features score --features features:1 --judge openai --judge-model NAME",
        "match": "modeldiff features match crosscoder:1 OTHER-CROSSCODER",
        "evaluate": "modeldiff features evaluate --crosscoder crosscoder:1",
    }


def test_every_kind_is_found_by_what_it_was_made_from(workspace: Workspace) -> None:
    activations, crosscoder, features = (workspace.find(kind) for kind in ("activations", "crosscoder", "features"))
    other = publish(workspace, shared_only(), activations, "other")
    add(workspace, "stitch", activations=activations)
    for kind in ("impact", "evaluate"):
        add(workspace, kind, crosscoder=crosscoder, activations=activations)
    for kind in ("explain", "score"):
        add(workspace, kind, features=features, crosscoder=crosscoder, activations=activations)
    add(workspace, "match", reference=crosscoder, other_1=other, activations=activations)
    assert there(workspace) == {kind: f"{kind}:1" for kind in KINDS if kind != "predictability"}
    measured = run_features(FeaturesSettings(device="cpu", outlier_factor=0.0), workspace)
    assert there(workspace, measured)["predictability"] == "features:2", "it is part of the features"


def test_what_is_about_other_features_does_not_count_however_new(workspace: Workspace) -> None:
    activations, crosscoder = workspace.find("activations"), workspace.find("crosscoder")
    other = publish(workspace, shared_only(), activations, "other")
    add(workspace, "impact", crosscoder=crosscoder, activations=activations)
    add(workspace, "impact", "newer", crosscoder=other, activations=activations)
    add(workspace, "evaluate", crosscoder=other, activations=activations)
    others_features = measure(workspace, crosscoder=other.ref)
    add(workspace, "explain", features=others_features, crosscoder=other, activations=activations)
    # Its rows are features of the reference.
    add(workspace, "match", reference=other, other_1=crosscoder, activations=activations)
    assert there(workspace) == {"impact": "impact:1"}
    versions = {"impact": 2, "explain": 1, "match": 1, "evaluate": 1}
    assert there(workspace, others_features) == {kind: f"{kind}:{number}" for kind, number in versions.items()}


def test_the_newest_comes_first_and_the_same_content_counts_whatever_its_version(workspace: Workspace) -> None:
    features = workspace.find("features")
    for label in ("one", "two"):
        add(workspace, "score", label, features=features)
    assert [one.ref for one in made_about(workspace, features, SCORE)] == ["score:2", "score:1"]
    settings = FeaturesSettings(predictability=False, device="cpu", outlier_factor=0.0)
    again = run_features(settings, workspace, force=True)
    assert again.ref == "features:2"
    assert there(workspace, again) == there(workspace) == {"score": "score:2"}


def test_commands_name_the_features_own_activations_and_crosscoders_also_when_gone(workspace: Workspace) -> None:
    crosscoder, trained_on = workspace.find("crosscoder"), workspace.find("activations")
    publish(workspace, shared_only(), trained_on, "other")
    elsewhere = make_activations(workspace, *sparse_pairs(300, seed=5), 300, None)
    features = measure(workspace, crosscoder=crosscoder.ref, activations=elsewhere.ref)
    add(workspace, "impact", crosscoder=crosscoder, activations=trained_on)
    assert there(workspace, features) == {}
    commands = {kind: one.command for kind, one in found(workspace, features).items()}
    assert commands["impact"] == "modeldiff features impact --crosscoder crosscoder:1 --activations activations:2"
    assert commands["stitch"] == "modeldiff features stitch --activations activations:2"
    assert found(workspace)["match"].command == "modeldiff features match crosscoder:1 crosscoder:2"
    for one in (trained_on, crosscoder):
        workspace.remove(one.folder)
    assert found(workspace)["stitch"].command == "modeldiff features stitch --activations activations:1"
