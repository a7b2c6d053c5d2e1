"""Transfer on the command line and around it: what is not needed, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modeldiff.lm.harvested as harvested_module
from modeldiff.cli.main import run as run_cli
from modeldiff.errors import InputError
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.features.measures.stitch.settings import StitchSettings
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.linear.stitch import load_stitch
from modeldiff.lm.load import ModelRef
from modeldiff.steer.transfer import run
from modeldiff.steer.transfer_rules import RULES
from tests.made_activations import make_activations
from tests.steer.made_transfer import LAYERS, Made, info_of, made_crosscoder, make, publish, settings_of, vectors_of


def test_a_direction_of_a_file_is_compared_with_the_targets_contrast(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = make(tmp_path, (str(folders["a"]), None))
    with pytest.raises(InputError, match="--model-path-b"):
        run(settings_of(from_prompts=made.prompts), made.workspace)
    np.save(tmp_path / "v.npy", np.ones(32, np.float32))
    wanted = settings_of(vector=tmp_path / "v.npy", truth_prompts=made.prompts, model_path_b=str(folders["b"]))
    rules = info_of(run(wanted, made.workspace))["truth"]["rules"]
    assert all(abs(one["cosine"]) <= 1 for one in rules.values())


def test_an_interrupted_run_keeps_the_sources_contrast(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, opened = harvested_module.load_model, []

    def dying(ref: ModelRef, *args: Any) -> Any:
        opened.append(ref.name)
        if len(opened) == 2:
            raise KeyboardInterrupt
        return loaded(ref, *args)

    monkeypatch.setattr(harvested_module, "load_model", dying)
    wanted = settings_of(from_prompts=made.prompts)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, made.workspace)
    artifact = run(wanted, made.workspace)
    assert len(opened) == 3  # the source's contrast was there
    again = run(wanted, made.workspace, force=True)
    assert again.manifest.digest == artifact.manifest.digest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "A"}, "both A"),
        ({"source": "C"}, "--from expects"),
        ({}, "one way"),
        ({"vector": Path("x"), "vector_from_feature": 3}, "one way"),
        ({"from_prompts": (Path("x"),)}, "two files"),
        ({"vector": Path("x"), "truth_prompts": (Path("x"),) * 3}, "--truth-prompts expects two files"),
        ({"from_prompts": (Path("x"),) * 2, "truth_prompts": (Path("x"),) * 2}, "leave out --truth-prompts"),
        ({"vector": Path("x"), "top": 0}, "--top"),
        ({"vector": Path("x"), "strength": (float("inf"),)}, "--strength"),
        ({"vector": Path("x"), "prompt": (" ",)}, "--prompt"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(**values)


def test_what_is_missing_is_named_with_its_command(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = make(tmp_path, (str(folders["a"]), str(folders["b"])), stitch=False)
    with pytest.raises(InputError, match="run `modeldiff features stitch --activations activations:1`"):
        run(settings_of(vector_from_feature=4), made.workspace)
    run_stitch(StitchSettings(device="cpu"), made.workspace)
    with pytest.raises(InputError, match="feature 14 is B-exclusive"):
        run(settings_of(vector_from_feature=14), made.workspace)
    publish(made.workspace, made_crosscoder(5), made.activations)
    with pytest.raises(InputError, match=r"no features of crosscoder:2 yet"):
        run(settings_of(vector_from_feature=4, crosscoder="2"), made.workspace)
    publish(made.workspace, made_crosscoder(0), made.activations)
    run_features(FeaturesSettings(predictability=False, device="cpu"), made.workspace)
    with pytest.raises(InputError, match="crosscoder:3 has no shared features"):
        run(settings_of(vector_from_feature=1), made.workspace)
    np.save(tmp_path / "v.npy", np.ones((2, 32), np.float32))
    with pytest.raises(InputError, match="compared with one direction"):
        run(
            settings_of(vector=tmp_path / "v.npy", truth_prompts=made.prompts, features="features:1"),
            made.workspace,
        )


@pytest.mark.parametrize(("layer", "refused"), [(LAYERS["a"], False), (LAYERS["a"] + 1, True)])
def test_a_named_stitch_may_be_of_other_activations_of_the_same_layers(
    made: Made, tmp_path: Path, layer: int, refused: bool
) -> None:
    x = torch.randn(400, 48, generator=torch.Generator().manual_seed(9))
    make_activations(made.workspace, x[:, :32], x[:, 32:], 400, layers=(layer, LAYERS["b"]))
    other = run_stitch(StitchSettings(device="cpu", activations="activations:2"), made.workspace)
    np.save(tmp_path / "v.npy", np.ones(32, np.float32))
    wanted = settings_of(vector=tmp_path / "v.npy", stitch=other.ref)
    if refused:
        with pytest.raises(InputError, match=f"{other.ref} maps .* layer 2 of model A, features:1 has layer 1"):
            run(wanted, made.workspace)
        return
    v_D = torch.ones(32) @ load_stitch(other).a_to_b.w_DD
    moved_D = vectors_of(run(wanted, made.workspace))["stitch"][0]
    torch.testing.assert_close(moved_D / moved_D.norm(), v_D / v_D.norm())
    default_D = vectors_of(run(settings_of(vector=tmp_path / "v.npy"), made.workspace))["stitch"][0]
    assert not torch.allclose(moved_D, default_D)


def call(capsys: pytest.CaptureFixture[str], made: Made, *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_cli(["--workspace", str(made.workspace.folder), "steer", *args])
    out, err = capsys.readouterr()
    return int(str(caught.value.code)), out, err


def widest(out: str) -> int:
    # The tiny models also write control characters, which take no room.
    return max(sum(character.isprintable() for character in line) for line in out.split("\n"))


FAST = ("--max-new-tokens", "6", "--device", "cpu")


def test_the_command(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [str(path) for path in made.prompts]
    args = ["transfer", "--from", "A", "--to", "B", "--from-prompts", *prompts, *FAST]
    args += ["--prompt", "The [bold]quick", "It is", "--strength", "-1", "2"]
    code, out, _ = call(capsys, made, *args)
    assert code == 0
    assert widest(out) <= 80
    for word in (*RULES, "cos in B", "random", "The [bold]quick", "unsteered", "stitch -1", "own +2"):
        assert word in out
    code, out, _ = call(capsys, made, *args, "--json")
    found = json.loads(out)
    assert found["truth"]["rules"].keys() == set(RULES)
    assert len(found["generations"]) == 2 * (1 + 2 * (len(RULES) + 1))
    np.save(tmp_path / "v.npy", np.ones((2, 32), np.float32))
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, made, "transfer", "--from", "A", "--vector", "v.npy", *FAST)
    assert code == 0
    assert "features used most" in out
    assert widest(out) <= 80


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["transfer"], "Missing option '--from'"),
        (["transfer", "--from", "A"], "one way"),
        (["transfer", "--from", "A", "--vector", "nowhere.npy"], "there is no file nowhere.npy"),
        (["--feature", "4"], "Missing option '--model'"),
        (["--model", "A", "sideways"], "No such command 'sideways'"),
        ([], "Missing option '--model'"),
    ],
)
def test_mistakes_on_the_command_line(
    made: Made, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    code, _, err = call(capsys, made, *args)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_steering_a_feature_still_takes_several_values(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """`transfer` beside it changes nothing: variadic options, also with a value called like the subcommand."""
    args = ["--model", "A", "--feature", "4", "--strength", "-2", "1", "--prompt", "The", "transfer"]
    code, out, _ = call(capsys, made, *args, "--max-new-tokens", "3", "--device", "cpu", "--json")
    assert code == 0
    found = [
        (one["prompt"], one["strength"]) for one in json.loads(out)["generations"] if one["direction"] == "feature"
    ]
    assert sorted(found) == sorted((p, s) for p in ("The", "transfer") for s in (0.0, -2.0, 1.0))
