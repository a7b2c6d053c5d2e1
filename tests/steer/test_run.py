"""Steering end to end on tiny models: what is written, what is refused, and that the model is left as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import modeldiff.lm.harvested as harvested_module
import modeldiff.steer.writing as writing_module
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.errors import InputError
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.lm.generate import generate
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.residual import add_to_residual
from modeldiff.settings import Settings, setting, settings
from modeldiff.steer.run import run
from modeldiff.steer.settings import SteerSettings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from tests.made_activations import make_activations
from tests.tiny_models import CHAT_TEMPLATE, save_tiny

WIDTHS = {"a": 32, "b": 16}
LAYERS = {"a": 1, "b": 0}
PROMPTS = ("The quick", "It is a truth")


@settings
class MadeSettings(Settings):
    """Stands for the training's settings."""

    dead: bool = setting(default=False)
    """Whether a feature is dead; only to make two of them."""


@dataclass
class Made:
    """A workspace with features of two tiny models."""

    workspace: Workspace
    crosscoder: Crosscoder
    artifact: Artifact
    features: Artifact


def made_crosscoder() -> Crosscoder:
    """Feature 0 and 1 (dead) of A, 2 shared, 3 of B, with large random decoder rows."""
    config = CrosscoderConfig(
        width_a=32, width_b=16, n_a_only=2, n_shared=1, n_b_only=1, k=2, scale_a=2.0, threshold=0.1
    )
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in crosscoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        crosscoder.b_enc.zero_()
        crosscoder.b_enc[1] = -1e6
    return crosscoder


def publish(workspace: Workspace, crosscoder: Crosscoder, activations: Artifact, *, dead: bool = False) -> Artifact:
    def build(work: Work) -> dict[str, int]:
        crosscoder.save_pretrained(work.folder)
        return {}

    order = Order("crosscoder", MadeSettings(dead=dead), {"activations": activations.as_input()}, 1)
    return produce(workspace, order, build)


def make(folder: Path, models: tuple[str | None, str | None]) -> Made:
    generator = torch.Generator().manual_seed(1)
    x_a, x_b = (torch.randn(60, width, generator=generator) for width in WIDTHS.values())
    workspace = Workspace(folder)
    activations = make_activations(workspace, x_a, x_b, 60, models=models, layers=(LAYERS["a"], LAYERS["b"]))
    crosscoder = made_crosscoder()
    artifact = publish(workspace, crosscoder, activations)
    features = run_features(FeaturesSettings(predictability=False, device="cpu"), workspace)
    return Made(workspace, crosscoder, artifact, features)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two models; B has a chat template."""
    place = tmp_path_factory.mktemp("models")
    return {
        "a": save_tiny(place / "a", "gpt2", width=32),
        "b": save_tiny(place / "b", "llama", width=16, chat_template=CHAT_TEMPLATE),
    }


@pytest.fixture
def made(tmp_path: Path, folders: dict[str, Path]) -> Made:
    return make(tmp_path / "ws", (str(folders["a"]), str(folders["b"])))


def settings_of(**values: Any) -> SteerSettings:
    chosen = {"model": "A", "feature": 0, "prompt": PROMPTS, "max_new_tokens": 6, "device": "cpu", **values}
    return SteerSettings(**chosen)


def records(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.file("generations.jsonl").read_bytes().splitlines()]


def generations(artifact: Artifact) -> list[dict[str, Any]]:
    """What was written unsteered and along the feature, without the figures."""
    told = ("prompt", "strength", "text")
    return [{key: one[key] for key in told} for one in records(artifact) if one["direction"] == "feature"]


def test_texts_are_those_of_the_steered_model(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(settings_of(strength=(3.0, -2.0)), made.workspace)
    lm = load_model(ModelRef(str(folders["a"])), torch.device("cpu"), torch.float32)
    maximum = json.loads(artifact.file("steering.json").read_text())["max_activation"]
    expected = []
    for strength in (0.0, 3.0, -2.0):
        vector_D = strength * maximum * made.crosscoder.w_dec_a[0].detach() / 2.0
        with add_to_residual(lm, LAYERS["a"], vector_D):
            texts = generate(lm, list(PROMPTS), max_new_tokens=6)
        expected += [{"prompt": p, "strength": strength, "text": t} for p, t in zip(PROMPTS, texts, strict=True)]
    assert generations(artifact) == expected
    assert expected[0]["text"] != expected[2]["text"]
    assert artifact.manifest.inputs["features"].label == made.features.ref


def test_the_model_is_left_without_hooks(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def remembering(*args: Any) -> Any:
        loaded.append(load_model(*args))
        return loaded[0]

    monkeypatch.setattr(harvested_module, "load_model", remembering)
    run(settings_of(), made.workspace)
    assert not any(module._forward_hooks for module in loaded[0].model.modules())


def test_the_other_side_with_its_chat_format(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(settings_of(model="B", feature=3, strength=(1.0,)), made.workspace)
    lm = load_model(ModelRef(str(folders["b"])), torch.device("cpu"), torch.float32)
    rendered = [f"<s><|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in PROMPTS]
    plain = generate(lm, rendered, max_new_tokens=6, add_special_tokens=False)
    assert [one["text"] for one in generations(artifact) if one["strength"] == 0] == plain
    off = run(settings_of(model="B", feature=3, chat="no"), made.workspace)
    texts = [one["text"] for one in generations(off) if one["strength"] == 0]
    assert texts == generate(lm, list(PROMPTS), max_new_tokens=6)


def test_prompts_of_a_file_are_the_same_as_those_given(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, "", PROMPTS[0]]), encoding="utf-8")
    artifact = run(settings_of(prompt=(), prompts=file), made.workspace)
    given = run(settings_of(), made.workspace)
    assert generations(artifact) == generations(given)
    assert artifact.manifest.inputs["prompts"].digest == given.manifest.inputs["prompts"].digest


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_an_interrupted_run_keeps_what_it_has(made: Made, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    written: list[str] = []
    generate_tokens = writing_module.generate_tokens

    def dying(lm: Any, prompts: list[str], **options: Any) -> Any:
        if len(written) == 6 and not died:
            died.append(True)
            raise KeyboardInterrupt
        written.extend(prompts)
        return generate_tokens(lm, prompts, **options)

    died: list[bool] = []
    monkeypatch.setattr(writing_module, "generate_tokens", dying)
    wanted = settings_of(strength=(1.0, 2.0), batch=batch)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, made.workspace)
    artifact = run(wanted, made.workspace)
    # Unsteered, and two strengths of the feature and of a random direction, for each prompt once.
    assert len(written) == 5 * len(PROMPTS)
    again = run(wanted, made.workspace, force=True)
    assert records(again) == records(artifact)
    assert again.manifest.digest == artifact.manifest.digest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature": 3}, "feature 3 is B-exclusive"),
        ({"model": "B", "feature": 0}, "feature 0 is A-exclusive"),
        ({"feature": 1}, "never fires"),
        ({"feature": 4}, "0 to 3"),
        ({"prompt": (" ",)}, "prompt is empty"),
        ({"features": "features:9"}, "features:1"),
    ],
)
def test_wrong_requests_are_refused_before_a_model_is_loaded(
    made: Made, values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvested_module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message):
        run(settings_of(**values), made.workspace)


def test_prompts_that_cannot_be_read(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        run(settings_of(prompt=(), prompts=tmp_path / "nowhere.txt"), made.workspace)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="UTF-8"):
        run(settings_of(prompt=(), prompts=tmp_path / "latin.txt"), made.workspace)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="a prompt is empty"):
        run(settings_of(prompt=(), prompts=tmp_path / "empty.txt"), made.workspace)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "C"}, "A or B"),
        ({"prompt": ()}, "--prompt TEXT or --prompts FILE"),
        ({"prompts": Path("x")}, "not both"),
        ({"strength": (float("nan"),)}, "--strength"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"random_directions": -1}, "--random-directions"),
        ({"batch": 0}, "--batch"),
        ({"stitch_bias": True}, "add --both"),
        ({"other_by": "stitch"}, "add --both"),
        ({"both": True, "other_by": "judge"}, "--other-by"),
        ({"both": True, "other_by": "decoder", "stitch": "1"}, "moves nothing"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(**values)


def test_imported_activations_need_the_model_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = make(tmp_path / "ws", (None, None))
    with pytest.raises(InputError, match="--model-path"):
        run(settings_of(), made.workspace)
    artifact = run(settings_of(model_path=str(folders["a"])), made.workspace)
    assert len(generations(artifact)) == 4


def test_a_model_of_another_width(made: Made, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="width 16, but the activations were 32 wide"):
        run(settings_of(model_path=str(folders["b"])), made.workspace)


def test_the_features_of_the_crosscoder_that_was_asked_for(made: Made) -> None:
    other = made_crosscoder()
    with torch.no_grad():
        other.w_dec_a.neg_()
    second = publish(made.workspace, other, made.workspace.find("activations"), dead=True)
    with pytest.raises(InputError, match=f"no features of {second.ref} yet"):
        run(settings_of(crosscoder=second.ref), made.workspace)
    with pytest.raises(InputError, match=f"not from {second.ref}"):
        run(settings_of(crosscoder=second.ref, features="1"), made.workspace)
    run_features(FeaturesSettings(predictability=False, device="cpu"), made.workspace)
    first = run(settings_of(crosscoder=made.artifact.ref), made.workspace)
    assert first.manifest.inputs["features"].label == made.features.ref
    latest = run(settings_of(), made.workspace)
    assert latest.manifest.inputs["crosscoder"].label == second.ref


def test_strength_0_is_the_unsteered_model_exactly(made: Made) -> None:
    artifact = run(settings_of(strength=(0.0, 2.0)), made.workspace)
    plain = [one for one in records(artifact) if one["strength"] == 0]
    assert [one["prompt"] for one in plain] == list(PROMPTS)
    for one in plain:
        assert (one["kl_first"], one["kl"], one["perplexity_ratio"]) == (0, 0, 1)
        assert one["repeated_change"] in (0, None)
    assert all(one["kl"] > 0 for one in records(artifact) if one["strength"] == 2)


def test_random_directions_of_the_same_norm_are_the_control(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(settings_of(strength=(3.0,), random_directions=2), made.workspace)
    steering = json.loads(artifact.file("steering.json").read_text())
    norm = steering["sides"]["A"]["unit_norm"]
    lm = load_model(ModelRef(str(folders["a"])), torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2):
        drawn_D = torch.randn(32, generator=generator)
        with add_to_residual(lm, LAYERS["a"], 3 * norm * drawn_D / drawn_D.norm()):
            texts = generate(lm, list(PROMPTS), max_new_tokens=6)
        assert [one["text"] for one in records(artifact) if one["direction"] == f"random {number}"] == texts
    # They count together, beside the feature.
    dose = [(row["direction"], row["strength"], row["generations"]) for row in steering["dose"]]
    assert dose == [("feature", 0.0, 2), ("feature", 3.0, 2), ("random", 3.0, 4)]
    without = run(settings_of(strength=(3.0,), random_directions=0), made.workspace)
    assert {one["direction"] for one in records(without)} == {"feature"}


def test_drawn_texts_of_a_prompt_use_the_same_random_numbers(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(settings_of(strength=(1e-6,), temperature=1.0, seed=3), made.workspace)
    plain, pushed = ([one["text"] for one in generations(artifact) if one["strength"] == s] for s in (0, 1e-6))
    lm = load_model(ModelRef(str(folders["a"])), torch.device("cpu"), torch.float32)
    assert plain == pushed == generate(lm, list(PROMPTS), max_new_tokens=6, temperature=1.0, seed=3)


def test_the_artifact_has_a_figure(made: Made) -> None:
    artifact = run(settings_of(random_directions=2), made.workspace)
    assert artifact.file("figures/dose.png").read_bytes().startswith(b"\x89PNG")
