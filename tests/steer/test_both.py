"""Both models steered side by side: what the other one gets, and what is refused."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

import modeldiff.lm.harvested as harvested_module
from modeldiff.cli.main import cli
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.lm.generate import generate
from modeldiff.lm.load import load_model
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.run import run
from modeldiff.workspace import Artifact
from tests.steer.made import LAYERS, MAP_AB, OF_B, PROMPTS, SCALES, SHARED, SHIFT_B, Made, info, lines, opened, steer


def maximum_of(made: Made, feature: int) -> float:
    return float(load_file(made.features.file("statistics.safetensors"))["max_activation"][feature])


def unit_of_a(made: Made, feature: int) -> torch.Tensor:
    return maximum_of(made, feature) * made.crosscoder.w_dec_a[feature].detach() / SCALES["a"]


@pytest.mark.parametrize("bias", [False, True])
def test_the_other_model_gets_the_direction_times_the_map(
    made: Made, stitch: Artifact, folders: dict[str, Path], bias: bool
) -> None:
    artifact = run(steer(both=True, strength=(-2.0, 1.0), stitch_bias=bias), made.workspace)
    expected_D = unit_of_a(made, 0) @ MAP_AB + (SHIFT_B if bias else 0)
    lm = opened(folders["b"])
    for strength in (-2.0, 1.0):
        with add_to_residual(lm, LAYERS["b"], strength * expected_D):
            expected = generate(lm, list(PROMPTS), max_new_tokens=6)
        chosen = {"model": "B", "strength": strength, "direction": "feature"}
        assert [one["text"] for one in lines(artifact) if {key: one[key] for key in chosen} == chosen] == expected
    side = info(artifact)["sides"]["B"]
    median = json.loads(made.features.file("features.json").read_text())["sides"]["b"]["median_norm"]
    assert side["unit_norm"] == pytest.approx(float(expected_D.norm()), rel=1e-3)
    assert side["unit_norm_in_medians"] == pytest.approx(float(expected_D.norm()) / median, rel=1e-3)
    assert (side["stitch"], side["stitch_bias"]) == (stitch.ref, bias)
    assert side["stitch_r2"] == pytest.approx(1, abs=1e-3)
    assert artifact.manifest.inputs["stitch"].label == stitch.ref


def test_the_model_that_was_named_is_steered_as_it_is_alone(made: Made, stitch: Artifact) -> None:
    both, alone = (run(steer(both=both, strength=(2.0,)), made.workspace) for both in (True, False))
    assert [one for one in lines(both) if one["model"] == "A"] == lines(alone)
    assert list(info(both)["sides"]) == ["A", "B"]
    unsteered = [one for one in lines(both) if one["model"] == "B" and one["strength"] == 0]
    assert all(one["kl"] == 0 for one in unsteered)
    side = info(run(steer(both=True, model="B", feature=OF_B), made.workspace))["sides"]
    assert list(side) == ["B", "A"]
    assert side["A"]["stitch"] == stitch.ref


def test_a_shared_feature_has_its_own_decoder_row_in_the_other_model(made: Made) -> None:
    artifact = run(steer(both=True, feature=SHARED, strength=(1.0,)), made.workspace)
    own = maximum_of(made, SHARED) * made.crosscoder.direction(SHARED, "b").norm()
    side = info(artifact)["sides"]["B"]
    assert (side["stitch"], side["unit_norm"]) == (None, pytest.approx(float(own)))
    assert "stitch" not in artifact.manifest.inputs
    run_stitch(StitchSettings(device="cpu", outlier_factor=0.0), made.workspace)
    moved = run(steer(both=True, feature=SHARED, strength=(1.0,), other_by="stitch"), made.workspace)
    expected = float((unit_of_a(made, SHARED) @ MAP_AB).norm())
    assert info(moved)["sides"]["B"]["unit_norm"] == pytest.approx(expected, rel=1e-3)


def test_one_model_in_memory_at_a_time(made: Made, stitch: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def watched(*args: Any) -> Any:
        gc.collect()
        assert all(before() is None for before in loaded)
        lm = load_model(*args)
        loaded.append(weakref.ref(lm))
        return lm

    monkeypatch.setattr(harvested_module, "load_model", watched)
    run(steer(both=True), made.workspace)
    assert len(loaded) == 2


def test_after_an_interruption_the_first_model_is_not_loaded_again(
    made: Made, stitch: Artifact, dies_after: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Six texts by the first model, and two by the second one.
    written = dies_after(2 * 3 + 2)
    wanted = steer(both=True, batch=2)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, made.workspace)
    names = []
    monkeypatch.setattr(harvested_module, "load_model", lambda *args: names.append(args[0].name) or load_model(*args))
    artifact = run(wanted, made.workspace)
    assert [Path(name).name for name in names] == ["b"]
    # Unsteered, the feature and a random direction, two prompts, two models.
    assert len(written) == 2 * 3 * 2
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
    assert data["generations"] == lines(artifact)
    assert len(data["dose"]) == 2 * (1 + 2 * 2)
