"""The contrast stage: planted differences of made continuations, and two untrained models that differ in nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from modeldiff.catalogue.contrast import read_contrast, read_places
from modeldiff.contrast import continuations, dictionary
from modeldiff.contrast import run as module
from modeldiff.contrast.continuations import run as run_continuations
from modeldiff.contrast.dictionary import crosscoder_for, features_of, largest_norms
from modeldiff.contrast.run import run
from modeldiff.contrast.settings import ContinuationsSettings, ContrastSettings
from modeldiff.contrast.statistics import halves
from modeldiff.crosscoder import load
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run as run_train
from modeldiff.errors import DamagedError, InputError
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.contrast.made_continuations import made_continuations, planted


def settings_of(**changes: Any) -> ContrastSettings:
    return ContrastSettings(**{"cause": False, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The contrast of a planted difference."""
    workspace = Workspace(tmp_path_factory.mktemp("planted") / "ws")
    made_continuations(workspace, **planted())
    return run(settings_of(), workspace)


def test_a_planted_difference_is_found_and_nothing_else(found: Artifact) -> None:
    contrast = read_contrast(found)
    (one,) = contrast["differences"]
    assert one["context"] == {"kind": "word", "name": "oak"}
    assert [row["word"] for row in one["a_says"]] == ["indeed"]
    assert one["a_says"][0]["a"] == pytest.approx(0.9, abs=0.12)
    assert {one["a_says"][0][key] for key in ("b", "a_elsewhere", "b_elsewhere")} == {0.0}
    assert (one["rank"], one["side"], one["verified"]) == (1, "A", True)
    assert 0.5 < one["low"] < one["effect"] < one["high"] <= 1.1
    assert one["sources"] == {"code": 1.0}
    assert all("oak" in text["before"] for text in one["texts"])


def test_continuations_of_another_format_are_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made_continuations(workspace, **planted(documents=8))
    monkeypatch.setattr(continuations, "FORMAT", continuations.FORMAT + 1)
    with pytest.raises(InputError, match=r"continuations\.json: format 1 is older"):
        run(settings_of(), workspace)


def test_contrast_json_says_what_was_compared(found: Artifact) -> None:
    contrast = read_contrast(found)
    assert (contrast["continuations"], contrast["crosscoder"], contrast["features"]) == ("continuations:1", None, None)
    assert found.settings["crosscoder"] == "none", "made again, it has none either"
    assert contrast["models"] == {"a": "org/model-a", "b": "org/model-b"}
    assert (contrast["places"], contrast["documents"]) == (320, 160)
    assert set(contrast["contexts"]) == {"everywhere", "word"}, "either source is half of the places: none is compared"
    assert contrast["contexts"]["everywhere"] == 1
    assert contrast["found"] == 1 == found.metrics["found"]
    assert contrast["candidates"] == contrast["found"] + len(contrast["not_verified"])
    assert contrast["expected_by_chance"] < 0.5
    places = read_places(found)
    assert len(places) == len(contrast["differences"]) + len(contrast["not_verified"])
    assert places[0].tolist() == [p for d in range(0, 160, 4) for p in (2 * d, 2 * d + 1)]
    assert len(places[0]) == contrast["differences"][0]["places"]


def test_the_same_command_is_up_to_date_and_settings_change_the_list(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    made_continuations(workspace, **planted())
    assert run(settings_of(), workspace).ref == run(settings_of(device="auto"), workspace).ref == "contrast:1"
    assert run(settings_of(smallest=0.95), workspace).metrics["found"] == 0
    contrast = read_contrast(run(settings_of(contexts=("source", "everywhere")), workspace))
    assert contrast["contexts"] == {"everywhere": 1}
    assert {one["context"]["kind"] for one in contrast["differences"]} <= {"source", "everywhere"}


def test_a_context_that_one_document_verifies_has_the_widest_interval(tmp_path: Path) -> None:
    """Nothing is known of other documents: the numbers stay such that JSON can hold them."""
    at = np.repeat(np.arange(40), 20)
    first = halves(at, 0)
    there = {*np.unique(at[first])[:4].tolist(), int(at[~first][0])}
    documents = [("oak " * 30 if d in there else "elm " * 30, "web") for d in range(40)]
    places = [(d, 10 + i, " indeed." if d in there else " well.", " well.") for d in range(40) for i in range(20)]
    workspace = Workspace(tmp_path / "ws")
    made_continuations(workspace, documents, places)
    contrast = read_contrast(run(settings_of(), workspace))
    (one,) = [one for one in contrast["not_verified"] if one["context"]["name"] == "oak"]
    assert (one["low"], one["effect"], one["high"]) == (-2, 1, 2)
    assert contrast["found"] == 0


def test_too_few_documents_cannot_be_compared_and_continuations_must_be_there(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="modeldiff contrast"):
        run(settings_of(), workspace)
    places = [(d, 10 + i, " indeed.", " well.") for d in range(3) for i in range(40)]
    made_continuations(workspace, [("oak " * 50, "web")] * 3, places)
    with pytest.raises(InputError, match="continuations:1 is of 3 documents: at least 4"):
        run(settings_of(), workspace)


def test_damaged_files_and_a_newer_format_are_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    made_continuations(workspace, **planted(documents=40))
    artifact = run(settings_of(), workspace)
    for name, read in (("contrast.json", read_contrast), ("places.safetensors", read_places)):
        (artifact.folder / name).write_text("{}")
        with pytest.raises(DamagedError, match=f"{name}.*workspace remove contrast:1"):
            read(artifact)
    newer: Any = SimpleNamespace(file=lambda name: artifact.folder / name)
    (artifact.folder / "contrast.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="upgrade modeldiff"):
        read_contrast(newer)
    with pytest.raises(InputError, match="found 'wrod'"):
        settings_of(contexts=("word", "wrod"))


class World(NamedTuple):
    """Two untrained models with all that a contrast can use."""

    workspace: Workspace
    activations: Artifact
    crosscoders: list[Artifact]
    continuations: Artifact
    others: Artifact
    """A crosscoder of A and A."""


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    models: dict[str, Path],
    texts_file: Path,
    make_settings: Callable[..., ContinuationsSettings],
) -> World:
    workspace = Workspace(tmp_path_factory.mktemp("world") / "ws")

    def harvest(model_b: Path) -> Artifact:
        asked = {"model_a": str(models["a"]), "model_b": str(model_b), "texts": (str(texts_file),)}
        return run_harvest(HarvestSettings(**asked, pairs=400, device="cpu"), workspace)

    def train(activations: Artifact, seed: int = 0) -> Artifact:
        small = {"features": 32, "k": 4, "steps": 20, "batch": 64, "device": "cpu"}
        return run_train(TrainSettings(activations=activations.ref, seed=seed, **small), workspace)

    activations = harvest(models["b"])
    crosscoders = [train(activations), train(activations, seed=1)]
    others = train(harvest(models["a"]))
    run_features(FeaturesSettings(crosscoder=crosscoders[0].ref, predictability=False, device="cpu"), workspace)
    continuations = run_continuations(make_settings(places=120, tokens=6), workspace)
    return World(workspace, activations, crosscoders, continuations, others)


def test_untrained_models_differ_in_nothing(world: World) -> None:
    contrast = read_contrast(run(settings_of(least=4), world.workspace))
    assert contrast["contexts"]["feature"] >= 1
    assert contrast["crosscoder"] == world.crosscoders[1].ref
    assert contrast["features"] is None
    assert (contrast["found"], contrast["differences"]) == (0, [])


def test_what_an_interrupted_contrast_has_read_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(settings_of(least=3), world.workspace)
    world.workspace.remove(straight.folder)

    def stop(*args: Any, **values: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "contrast", stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings_of(least=3), world.workspace)
    monkeypatch.setattr(dictionary, "activations", None)
    assert run(settings_of(least=3), world.workspace).manifest.digest == straight.manifest.digest
    monkeypatch.setattr(continuations, "model_identity", lambda *_: {"digest": "another"})
    with pytest.raises(InputError, match=r"has changed since continuations:1 was made"):
        run(settings_of(least=5), world.workspace)


def test_the_latest_crosscoder_of_these_models_is_used_unless_another_is_named(world: World) -> None:
    workspace, source = world.workspace, world.continuations
    first, second = world.crosscoders
    assert crosscoder_for(workspace, source, None).ref == second.ref
    assert crosscoder_for(workspace, source, first.ref).ref == first.ref
    assert crosscoder_for(workspace, source, "none") is None
    with pytest.raises(InputError, match=f"{world.others.ref} was trained on other models"):
        crosscoder_for(workspace, source, world.others.ref)
    assert [features_of(workspace, one) is not None for one in (first, second)] == [True, False]


def test_outlying_pairs_are_those_that_training_would_have_dropped(world: World) -> None:
    """A factor of the median norm; a crosscoder's scale brings that to the square root of the mean width."""
    limits = largest_norms(world.crosscoders[0], load(world.crosscoders[0]).config)
    info = ActivationStore(world.activations).info
    factor = world.crosscoders[0].settings["outlier_factor"]
    for side in "ab":
        np.testing.assert_allclose(limits[side], factor * info.sides[side].median_norm, rtol=1e-4)
