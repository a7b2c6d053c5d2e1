"""Both models steered side by side: what the other one gets, and what is refused."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

import modeldiff.lm.harvested as harvested_module
import modeldiff.steer.writing as writing_module
from modeldiff.cli.main import cli
from modeldiff.errors import InputError
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.features.measures.stitch.settings import StitchSettings
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.lm.generate import generate
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.run import run
from modeldiff.workspace import Artifact, Workspace
from tests.made_activations import make_activations
from tests.steer.test_run import LAYERS, PROMPTS, Made, made_crosscoder, publish, records, settings_of
from tests.tiny_models import save_tiny

N = 600
GENERATOR = torch.Generator().manual_seed(5)
MAP_AB = torch.randn(32, 16, generator=GENERATOR)
SHIFT_B = torch.randn(16, generator=GENERATOR)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {
        "a": save_tiny(place / "a", "gpt2", width=32),
        "b": save_tiny(place / "b", "llama", width=16),
    }


@pytest.fixture
def made(tmp_path: Path, folders: dict[str, Path]) -> Made:
    """B's activations are an affine map of A's; no stitch yet."""
    workspace = Workspace(tmp_path / "ws")
    x_a = torch.randn(N, 32, generator=torch.Generator().manual_seed(1))
    models = (str(folders["a"]), str(folders["b"]))
    layers = (LAYERS["a"], LAYERS["b"])
    activations = make_activations(workspace, x_a, x_a @ MAP_AB + SHIFT_B, N, models=models, layers=layers)
    crosscoder = made_crosscoder()
    artifact = publish(workspace, crosscoder, activations)
    features = run_features(FeaturesSettings(predictability=False, device="cpu"), workspace)
    return Made(workspace, crosscoder, artifact, features)


@pytest.fixture
def stitch(made: Made) -> Artifact:
    return run_stitch(StitchSettings(device="cpu", outlier_factor=0.0), made.workspace)


def sides_of(artifact: Artifact) -> dict[str, Any]:
    sides: dict[str, Any] = json.loads(artifact.file("steering.json").read_text())["sides"]
    return sides


def texts_of(artifact: Artifact, model: str, strength: float) -> list[str]:
    chosen = {"model": model, "strength": strength, "direction": "feature"}
    return [one["text"] for one in records(artifact) if {key: one[key] for key in chosen} == chosen]


def unit_of_a(made: Made, feature: int) -> torch.Tensor:
    maximum = float(load_file(made.features.file("statistics.safetensors"))["max_activation"][feature])
    return maximum * made.crosscoder.w_dec_a[feature].detach() / 2.0


@pytest.mark.parametrize("bias", [False, True])
def test_the_other_model_gets_the_direction_times_the_map(
    made: Made, stitch: Artifact, folders: dict[str, Path], bias: bool
) -> None:
    artifact = run(settings_of(both=True, strength=(-2.0, 1.0), stitch_bias=bias), made.workspace)
    expected_D = unit_of_a(made, 0) @ MAP_AB + (SHIFT_B if bias else 0)
    lm = load_model(ModelRef(str(folders["b"])), CPU, torch.float32)
    for strength in (-2.0, 1.0):
        with add_to_residual(lm, LAYERS["b"], strength * expected_D):
            assert texts_of(artifact, "B", strength) == generate(lm, list(PROMPTS), max_new_tokens=6)
    side = sides_of(artifact)["B"]
    median = json.loads(made.features.file("features.json").read_text())["sides"]["b"]["median_norm"]
    assert side["unit_norm"] == pytest.approx(float(expected_D.norm()), rel=1e-3)
    assert side["unit_norm_in_medians"] == pytest.approx(float(expected_D.norm()) / median, rel=1e-3)
    assert (side["by"], side["stitch"], side["stitch_bias"]) == ("stitch", stitch.ref, bias)
    assert side["stitch_r2"] == pytest.approx(1, abs=1e-3)
    assert artifact.manifest.inputs["stitch"].label == stitch.ref


def test_the_model_that_was_named_is_steered_as_it_is_alone(made: Made, stitch: Artifact) -> None:
    both, alone = (run(settings_of(both=both, strength=(2.0,)), made.workspace) for both in (True, False))
    assert [one for one in records(both) if one["model"] == "A"] == records(alone)
    assert list(sides_of(both)) == ["A", "B"]
    unsteered = [one for one in records(both) if one["model"] == "B" and one["strength"] == 0]
    assert all((one["kl"], one["perplexity_ratio"]) == (0, 1) for one in unsteered)


def test_a_shared_feature_has_its_own_decoder_row_in_the_other_model(made: Made, stitch: Artifact) -> None:
    artifact = run(settings_of(both=True, feature=2, strength=(1.0,)), made.workspace)
    maximum = float(load_file(made.features.file("statistics.safetensors"))["max_activation"][2])
    own = maximum * made.crosscoder.direction(2, "b").norm()
    assert sides_of(artifact)["B"]["by"] == "decoder"
    assert sides_of(artifact)["B"]["unit_norm"] == pytest.approx(float(own))
    assert "stitch" not in artifact.manifest.inputs
    moved = run(settings_of(both=True, feature=2, strength=(1.0,), other_by="stitch"), made.workspace)
    expected = float((unit_of_a(made, 2) @ MAP_AB).norm())
    assert sides_of(moved)["B"]["unit_norm"] == pytest.approx(expected, rel=1e-3)


def test_a_shared_feature_needs_no_stitch(made: Made) -> None:
    assert list(sides_of(run(settings_of(both=True, feature=2), made.workspace))) == ["A", "B"]


def test_the_other_way_round(made: Made, stitch: Artifact) -> None:
    side = sides_of(run(settings_of(both=True, model="B", feature=3), made.workspace))
    assert list(side) == ["B", "A"]
    assert side["A"]["stitch"] == stitch.ref


def test_one_model_in_memory_at_a_time(made: Made, stitch: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def watched(*args: Any) -> Any:
        gc.collect()
        assert all(before() is None for before in loaded)
        lm = load_model(*args)
        loaded.append(weakref.ref(lm))
        return lm

    monkeypatch.setattr(harvested_module, "load_model", watched)
    run(settings_of(both=True), made.workspace)
    assert len(loaded) == 2


def test_after_an_interruption_the_first_model_is_not_loaded_again(
    made: Made, stitch: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    generate_tokens = writing_module.generate_tokens

    def dying(lm: Any, prompts: list[str], **options: Any) -> Any:
        if lm.width == 16 and len(written) == 2 * 3 + 2:
            written.append("died")
            raise KeyboardInterrupt
        written.extend(prompts)
        return generate_tokens(lm, prompts, **options)

    monkeypatch.setattr(writing_module, "generate_tokens", dying)
    wanted = settings_of(both=True, batch=2)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, made.workspace)
    names = []
    monkeypatch.setattr(harvested_module, "load_model", lambda *args: names.append(args[0].name) or load_model(*args))
    artifact = run(wanted, made.workspace)
    assert [Path(name).name for name in names] == ["b"]
    # Unsteered, the feature and a random direction, two prompts, two models.
    assert len(written) == 1 + 2 * 3 * 2
    again = run(wanted, made.workspace, force=True)
    assert again.manifest.digest == artifact.manifest.digest


def test_the_command_prints_both_models_and_has_everything_as_json(
    made: Made, stitch: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(made.workspace.folder)
    args = ["--workspace", folder, "steer", "--model", "A", "--feature", "0", "--both", "--strength", "-1:1:1"]
    args += ["--prompt", *PROMPTS, "--max-new-tokens", "6", "--device", "cpu"]
    cli.main(args, standalone_mode=False)
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith("figure: ")) <= 80
    for words in ("model A", "model B", "coherent range of A", "coherent range of B", "random: 1 random direction"):
        assert words in printed
    cli.main([*args, "--json"], standalone_mode=False)
    data = json.loads(capsys.readouterr().out)
    assert Path(data["figure"]).is_file()
    assert set(data["coherent"]) == {"A", "B"}
    (artifact,) = made.workspace.artifacts("steering")
    assert data["generations"] == records(artifact)
    assert len(data["dose"]) == 2 * (1 + 2 * 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no stitch of activations:1 yet.*modeldiff features stitch --activations activations:1"),
        ({"other_by": "decoder"}, "feature 0 is A-exclusive.*--other-by stitch"),
        ({"feature": 2, "stitch_bias": True}, "--other-by stitch"),
        ({"stitch": "stitch:7"}, "no stitch in .*modeldiff features stitch"),
    ],
)
def test_wrong_requests_are_refused_before_a_model_is_loaded(
    made: Made, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvested_module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message):
        run(settings_of(both=True, **values), made.workspace)


def test_a_stitch_of_other_activations_is_not_taken(made: Made) -> None:
    x = torch.randn(N, 48, generator=torch.Generator().manual_seed(9))
    make_activations(made.workspace, x[:, :32], x[:, 32:], N)
    other = run_stitch(StitchSettings(device="cpu", activations="activations:2"), made.workspace)
    with pytest.raises(InputError, match="no stitch of activations:1 yet"):
        run(settings_of(both=True), made.workspace)
    with pytest.raises(InputError, match=f"{other.ref} is of activations:2, not of activations:1"):
        run(settings_of(both=True, stitch=other.ref), made.workspace)
