"""Steering end to end on tiny models: what is written, what is refused, and that the model is left as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import modeldiff.lm.harvested as harvested_module
from modeldiff.errors import InputError
from modeldiff.lm.generate import generate
from modeldiff.lm.load import load_model
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.run import plan, run
from modeldiff.workspace import Artifact
from tests.steer.made import LAYERS, OF_B, PROMPTS, SCALES, Made, info, lines, make, opened, steer, transfer


def generations(artifact: Artifact) -> list[dict[str, Any]]:
    """What was written unsteered and along the feature, without the figures."""
    told = ("prompt", "strength", "text")
    return [{key: one[key] for key in told} for one in lines(artifact) if one["direction"] == "feature"]


def test_texts_are_those_of_the_steered_model(
    made: Made, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(harvested_module, "load_model", lambda *args: loaded.append(load_model(*args)) or loaded[0])
    artifact = run(steer(strength=(3.0, 0.0, -2.0)), made.workspace)
    assert not any(module._forward_hooks for module in loaded[0].model.modules())
    lm = opened(folders["a"])
    maximum = info(artifact)["max_activation"]
    expected = []
    for strength in (0.0, 3.0, -2.0):
        vector_D = strength * maximum * made.crosscoder.w_dec_a[0].detach() / SCALES["a"]
        with add_to_residual(lm, LAYERS["a"], vector_D):
            texts = generate(lm, list(PROMPTS), max_new_tokens=6)
        expected += [{"prompt": p, "strength": strength, "text": t} for p, t in zip(PROMPTS, texts, strict=True)]
    assert generations(artifact) == expected
    assert all((one["kl"] > 0) == (one["strength"] != 0) for one in lines(artifact))
    assert artifact.manifest.inputs["features"].label == made.features.ref
    assert artifact.file("figures/dose.png").read_bytes().startswith(b"\x89PNG")


def test_the_other_side_with_its_chat_format(made_with_chat: Made, folders: dict[str, Path]) -> None:
    artifact = run(steer(model="B", feature=OF_B, strength=(1.0,)), made_with_chat.workspace)
    lm = opened(folders["chat"])
    rendered = [f"<s><|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in PROMPTS]
    plain = generate(lm, rendered, max_new_tokens=6, add_special_tokens=False)
    assert [one["text"] for one in generations(artifact) if one["strength"] == 0] == plain
    off = run(steer(model="B", feature=OF_B, chat="no"), made_with_chat.workspace)
    texts = [one["text"] for one in generations(off) if one["strength"] == 0]
    assert texts == generate(lm, list(PROMPTS), max_new_tokens=6)


def test_prompts_of_a_file_are_the_same_as_those_given(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, "", PROMPTS[0]]), encoding="utf-8")
    artifact = run(steer(prompt=(), prompts=file), made.workspace)
    given = run(steer(), made.workspace)
    assert generations(artifact) == generations(given)
    assert artifact.manifest.inputs["prompts"].digest == given.manifest.inputs["prompts"].digest
    records = tmp_path / "prompts.jsonl"
    records.write_text("\n".join(json.dumps({"prompt": one, "id": 1}) for one in PROMPTS), encoding="utf-8")
    assert run(steer(prompt=(), prompts=records), made.workspace).ref in (artifact.ref, given.ref)


def test_prompts_of_records_may_have_several_lines(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"text": "one\n\ntwo"}), encoding="utf-8")
    artifact = run(steer(prompt=(), prompts=file), made.workspace)
    assert {one["prompt"] for one in generations(artifact)} == {"one\n\ntwo"}
    file.write_text(json.dumps({"question": "one"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"prompts\.jsonl: a prompt is missing"):
        run(steer(prompt=(), prompts=file), made.workspace)


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_an_interrupted_run_keeps_what_it_has(made: Made, dies_after: Callable[[int], list[str]], batch: int) -> None:
    written = dies_after(6)
    wanted = steer(strength=(1.0, 2.0), batch=batch)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, made.workspace)
    artifact = run(wanted, made.workspace)
    # Unsteered, and two strengths of the feature and of a random direction, for each prompt once.
    assert len(written) == 5 * len(PROMPTS)
    again = run(wanted, made.workspace, force=True)
    assert lines(again) == lines(artifact)
    assert again.manifest.digest == artifact.manifest.digest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature": OF_B}, "feature 14 is B-exclusive"),
        ({"model": "B", "feature": 0}, "feature 0 is A-exclusive"),
        ({"feature": 1}, "never fires"),
        ({"feature": 15}, "0 to 14"),
        ({"prompt": (" ",)}, "prompt is missing or empty"),
        ({"prompt": (), "prompts": Path("nowhere.txt")}, r"nowhere\.txt"),
        ({"features": "features:9"}, "features:1"),
        ({"both": True}, "no stitch of activations:1 yet.*modeldiff features stitch --activations activations:1"),
        ({"both": True, "feature": 2, "stitch_bias": True}, "--other-by stitch"),
        ({"both": True, "stitch": "stitch:7"}, "no stitch in .*modeldiff features stitch"),
    ],
)
def test_wrong_requests_are_refused_before_a_model_is_loaded(
    made: Made, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvested_module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message):
        run(steer(**values), made.workspace)


@pytest.mark.parametrize(
    ("make_settings", "values", "message"),
    [
        (steer, {"prompt": ()}, "--prompt TEXT or --prompts FILE"),
        (steer, {"prompts": Path("x")}, "in one way"),
        (steer, {"strength": (float("nan"),)}, "--strength"),
        (steer, {"random_directions": -1}, "--random-directions"),
        (steer, {"stitch_bias": True}, "add --both"),
        (steer, {"other_by": "stitch"}, "add --both"),
        (transfer, {}, "one way"),
        (transfer, {"vector": Path("x"), "vector_from_feature": 3}, "one way"),
        (transfer, {"from_prompts": (Path("x"),)}, "two files"),
        (transfer, {"vector": Path("x"), "top": 0}, "--top"),
    ],
)
def test_settings_that_make_no_sense(make_settings: Callable[..., Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_settings(**values)


def test_imported_activations_need_the_model_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = make(tmp_path / "ws", (None, None))
    with pytest.raises(InputError, match="--model-path-a"):
        run(steer(), made.workspace)
    artifact = run(steer(model_path_a=str(folders["a"])), made.workspace)
    assert len(generations(artifact)) == 4
    with pytest.raises(InputError, match="width 16, but the activations were 32 wide"):
        run(steer(model_path_a=str(folders["b"])), made.workspace)


def test_random_directions_of_the_same_norm_are_the_control(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(steer(strength=(3.0,), random_directions=2), made.workspace)
    steering = info(artifact)
    norm = steering["sides"]["A"]["unit_norm"]
    lm = opened(folders["a"])
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2):
        drawn_D = torch.randn(32, generator=generator)
        with add_to_residual(lm, LAYERS["a"], 3 * norm * drawn_D / drawn_D.norm()):
            texts = generate(lm, list(PROMPTS), max_new_tokens=6)
        assert [one["text"] for one in lines(artifact) if one["direction"] == f"random {number}"] == texts
    # They count together, beside the feature.
    dose = [(row["direction"], row["strength"], row["generations"]) for row in steering["dose"]]
    assert dose == [("feature", 0.0, 2), ("feature", 3.0, 2), ("random", 3.0, 4)]
    without = run(steer(strength=(3.0,), random_directions=0), made.workspace)
    assert {one["direction"] for one in lines(without)} == {"feature"}


def test_drawn_texts_of_a_prompt_use_the_same_random_numbers(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(steer(strength=(1e-6,), temperature=1.0, seed=3), made.workspace)
    plain, pushed = ([one["text"] for one in generations(artifact) if one["strength"] == s] for s in (0, 1e-6))
    lm = opened(folders["a"])
    assert plain == pushed == generate(lm, list(PROMPTS), max_new_tokens=6, temperature=1.0, seed=3)


def test_a_plan_is_of_longer_texts_and_leaves_nothing(made: Made) -> None:
    there = [one.ref for one in made.workspace.artifacts()]
    found = plan(steer(strength=(1.0, 2.0), max_new_tokens=32), made.workspace)
    assert (found["prompts"], found["pushes"]) == (len(PROMPTS), 5)  # unsteered, and by one random direction
    assert found["rehearsal"]["rehearsed"] == {"max_new_tokens": 8}
    assert found["rehearsal"]["time"]["parts"]["steer"] > 0
    assert [one.ref for one in made.workspace.artifacts()] == there
