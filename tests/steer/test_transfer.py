"""Transfer end to end on tiny models: what is written, what is refused, and what each number is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import modeldiff.lm.harvested as harvested_module
import modeldiff.steer.transfer as transfer_module
import modeldiff.steer.transfer_effect as effect_module
from modeldiff.cli.main import run as run_cli
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.crosscoder.stitch import load_stitch
from modeldiff.errors import InputError
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.lm.generate import generate, generate_tokens
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.residual import add_to_residual, residual_after
from modeldiff.settings import Settings, setting, settings
from modeldiff.steer.transfer import run
from modeldiff.steer.transfer_contrast import Contrast
from modeldiff.steer.transfer_rules import RULES, Decoders, cosine, paper_rule
from modeldiff.steer.transfer_settings import TransferSettings
from modeldiff.stitch.run import run as run_stitch
from modeldiff.stitch.settings import StitchSettings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from tests.made_activations import make_activations
from tests.tiny_models import CHAT_TEMPLATE, save_tiny

WIDTHS = {"a": 32, "b": 16}
LAYERS = {"a": 1, "b": 0}
POSITIVE = ("The quick brown fox", "A single man", "It was 1989")
NEGATIVE = ("Nobody minded", "A good fortune", "The lazy dog")


@settings
class MadeSettings(Settings):
    """Stands for the training's settings."""

    shared: int = setting(default=12)
    """Number of shared features."""


@dataclass
class Made:
    """A workspace with everything a transfer needs."""

    workspace: Workspace
    crosscoder: Crosscoder
    activations: Artifact
    positive: Path
    negative: Path

    @property
    def prompts(self) -> tuple[Path, Path]:
        return self.positive, self.negative


def made_crosscoder(n_shared: int = 12) -> Crosscoder:
    config = CrosscoderConfig(
        width_a=32, width_b=16, n_a_only=2, n_shared=n_shared, n_b_only=1, k=2, scale_a=2.0, scale_b=0.5, threshold=0.1
    )
    crosscoder = Crosscoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in crosscoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        crosscoder.b_enc.zero_()
    return crosscoder


def publish(workspace: Workspace, crosscoder: Crosscoder, activations: Artifact) -> Artifact:
    def build(work: Work) -> dict[str, int]:
        crosscoder.save_pretrained(work.folder)
        return {}

    made_with = MadeSettings(shared=crosscoder.config.n_shared)
    return produce(workspace, Order("crosscoder", made_with, {"activations": activations.as_input()}, 1), build)


def make(folder: Path, models: tuple[str | None, str | None], *, stitch: bool = True) -> Made:
    generator = torch.Generator().manual_seed(1)
    x_a = torch.randn(400, 32, generator=generator)
    x_b = 3 * x_a @ torch.randn(32, 16, generator=generator)
    workspace = Workspace(folder / "ws")
    activations = make_activations(workspace, x_a, x_b, 400, models=models, layers=(LAYERS["a"], LAYERS["b"]))
    crosscoder = made_crosscoder()
    publish(workspace, crosscoder, activations)
    run_features(FeaturesSettings(predictability=False, device="cpu"), workspace)
    if stitch:
        run_stitch(StitchSettings(device="cpu"), workspace)
    for name, prompts in (("positive", POSITIVE), ("negative", NEGATIVE)):
        (folder / f"{name}.txt").write_text("\n".join(prompts))
    return Made(workspace, crosscoder, activations, folder / "positive.txt", folder / "negative.txt")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("models")
    yield {
        "a": save_tiny(place / "a", "gpt2", width=32),
        "b": save_tiny(place / "b", "llama", width=16, seed=1),
        "chat": save_tiny(place / "chat", "llama", width=16, seed=1, chat_template=CHAT_TEMPLATE),
    }
    torch.set_num_threads(threads)


@pytest.fixture
def made(tmp_path: Path, folders: dict[str, Path]) -> Made:
    return make(tmp_path, (str(folders["a"]), str(folders["b"])))


def settings_of(**values: Any) -> TransferSettings:
    chosen = {
        "source": "A",
        "max_new_tokens": 6,
        "random": 20,
        "random_effects": 2,
        "top": 4,
        "nonzeros": 4,
        "device": "cpu",
        **values,
    }
    return TransferSettings(**chosen)


def info_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artifact.file("transfer.json").read_text())
    return found


def vectors_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("vectors.safetensors"))


def model(folders: dict[str, Path], side: str) -> Any:
    return load_model(ModelRef(str(folders[side])), torch.device("cpu"), torch.float32)


def contrast_by_hand(lm: Any, layer: int, prompts: tuple[str, ...]) -> torch.Tensor:
    """Mean over prompts of the mean residual over the response's tokens, one sequence at a time."""
    means = []
    for one in generate_tokens(lm, list(prompts), max_new_tokens=6):
        ids = [token for token in one.new_ids if token != 1]  # the end of a text is no part of the response
        ids_BT = torch.tensor([one.prompt_ids + ids])
        means.append(residual_after(lm, layer, ids_BT, torch.ones_like(ids_BT))[0, len(one.prompt_ids) :].mean(dim=0))
    return torch.stack(means).mean(dim=0)


def test_a_contrast_is_made_moved_and_compared(made: Made, folders: dict[str, Path]) -> None:
    artifact = run(settings_of(from_prompts=made.prompts), made.workspace)
    found, info = vectors_of(artifact), info_of(artifact)
    hand = {
        side: contrast_by_hand(lm, LAYERS[side], POSITIVE) - contrast_by_hand(lm, LAYERS[side], NEGATIVE)
        for side, lm in ((side, model(folders, side)) for side in ("a", "b"))
    }
    torch.testing.assert_close(found["source"][0], hand["a"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["own"][0], hand["b"], atol=1e-5, rtol=1e-4)
    # The stitch's matrix, and the paper's rule on decoders in raw units; both rescaled in median norms.
    median = info["median_norms"]
    norm = float(hand["a"].norm()) * median["b"] / median["a"]
    stitch = load_stitch(made.workspace.find("stitch")).a_to_b
    expected = {"stitch": hand["a"] @ stitch.w_DD}
    decoders = Decoders.of(made.crosscoder, "a")
    expected["paper"] = paper_rule(decoders, hand["a"][None], 4).target_ND[0]
    for rule, expected_D in expected.items():
        wanted_D = expected_D * norm / expected_D.norm()
        torch.testing.assert_close(found[rule][0], wanted_D, atol=1e-4, rtol=1e-3)
        assert info["truth"]["rules"][rule]["cosine"] == pytest.approx(float(cosine(expected_D, hand["b"])), abs=1e-4)
        assert info["moved"][rule][0]["norm_in_medians"] == pytest.approx(info["source_norms"][0]["norm_in_medians"])
    assert set(info["truth"]["rules"]) == set(RULES)
    assert info["prompts"] == {side: {"positive": 3, "negative": 3, "silent": 0} for side in ("a", "b")}
    answers = [json.loads(line) for line in artifact.file("answers.jsonl").read_bytes().splitlines()]
    assert [one["prompt"] for one in answers] == [*POSITIVE, *NEGATIVE] * 2


def test_the_steering_effect_by_hand(made: Made, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    measured = effect_module.effects

    def watching(lm: Any, layer: int, contrast: Contrast, directions: Any, norm: float, resume: Path) -> Any:
        kept.update(contrast=contrast, norm=norm)
        return measured(lm, layer, contrast, directions, norm, resume)

    monkeypatch.setattr(transfer_module, "effects", watching)
    artifact = run(settings_of(from_prompts=made.prompts, effect_strength=3.0), made.workspace)
    found, effect = vectors_of(artifact), info_of(artifact)["truth"]["effect"]
    assert effect["norm"] == pytest.approx(3 * float(found["own"][0].norm()), rel=1e-5)
    lm = model(folders, "b")
    contrast: Contrast = kept["contrast"]
    positive, negative = [one for _, one in contrast.said(True)], [one for _, one in contrast.said(False)]
    by_hand = {}
    for rule in ("own", "stitch"):
        vector_D = found[rule][0] / found[rule][0].norm() * effect["norm"]
        effects = []
        for yes, no in zip(positive, negative, strict=True):
            preference = []
            for sign in (1, -1):
                with add_to_residual(lm, LAYERS["b"], sign * vector_D):
                    scores = []
                    for ids in (yes.ids, no.ids):
                        logits_TV = lm.model(torch.tensor([no.prompt_ids + ids])).logits[0]
                        at = len(no.prompt_ids) - 1
                        log_prob_TV = logits_TV.log_softmax(dim=-1)
                        scores.append(sum(float(log_prob_TV[at + i, t]) for i, t in enumerate(ids)) / len(ids))
                preference.append(scores[0] - scores[1])
            effects.append((preference[0] - preference[1]) / 2)
        by_hand[rule] = np.mean(effects)
    assert effect["own"] == pytest.approx(by_hand["own"], abs=1e-4)
    assert effect["rules"]["stitch"]["nats"] == pytest.approx(by_hand["stitch"], abs=1e-4)
    assert effect["prompts"] == 3
    assert effect["random_in_target"]["directions"] == 2


def test_directions_of_a_file_need_no_model(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvested_module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    v_ND = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    np.save(tmp_path / "v.npy", v_ND)
    artifact = run(settings_of(vector=tmp_path / "v.npy"), made.workspace)
    found, info = vectors_of(artifact), info_of(artifact)
    np.testing.assert_array_equal(found["source"].numpy(), v_ND)
    ratio = info["median_norms"]["b"] / info["median_norms"]["a"]
    for rule in RULES:
        assert found[rule].shape == (3, 16)
        np.testing.assert_allclose(found[rule].norm(dim=1), np.linalg.norm(v_ND, axis=1) * ratio, rtol=1e-4)
    assert info["truth"] is None
    assert "--truth-prompts" in info["truth_missing"]
    literal = run(settings_of(vector=tmp_path / "v.npy", rescale="source"), made.workspace)
    np.testing.assert_allclose(vectors_of(literal)["paper"].norm(dim=1), np.linalg.norm(v_ND, axis=1), rtol=1e-4)
    # The same array elsewhere is the same input.
    np.save(tmp_path / "w.npy", v_ND)
    assert run(settings_of(vector=tmp_path / "w.npy"), made.workspace).ref == artifact.ref


def test_from_b_to_a_a_feature_and_its_continuations(made: Made, folders: dict[str, Path]) -> None:
    prompts = ("The quick", "It is a truth")
    wanted = settings_of(source="B", target="A", vector_from_feature=4, prompt=prompts, strength=(2.0,))
    artifact = run(wanted, made.workspace)
    found = vectors_of(artifact)
    row_D = made.crosscoder.w_dec_b[4 - 2].detach() / 0.5
    torch.testing.assert_close(cosine(found["source"][0], row_D), torch.tensor(1.0, dtype=torch.float64))
    records = [json.loads(line) for line in artifact.file("generations.jsonl").read_bytes().splitlines()]
    assert [(one["rule"], one["strength"]) for one in records[::2]] == [("unsteered", 0.0), *((r, 2.0) for r in RULES)]
    lm = model(folders, "a")
    assert [one["text"] for one in records[:2]] == generate(lm, list(prompts), max_new_tokens=6)
    with add_to_residual(lm, LAYERS["a"], 2 * found["stitch"][0]):
        steered = generate(lm, list(prompts), max_new_tokens=6)
    assert [one["text"] for one in records if one["rule"] == "stitch"] == steered


def test_responses_of_a_file_and_a_chat_format(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = make(tmp_path, (str(folders["a"]), str(folders["chat"])))
    for name, answer in (("positive", " Yes, sir."), ("negative", " No.")):
        lines = [{"prompt": p, "system": "Be brief.", "response": answer} for p in POSITIVE[:2]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = (tmp_path / "positive.jsonl", tmp_path / "negative.jsonl")
    found = vectors_of(run(settings_of(from_prompts=files), made.workspace))
    for side, template in (
        ("a", "Be brief.\n\n{}"),
        ("chat", "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
    ):
        lm = model(folders, side)
        means = {}
        for answer in (" Yes, sir.", " No."):
            means[answer] = []
            for prompt in POSITIVE[:2]:
                opening = lm.tokenizer(template.format(prompt), add_special_tokens=side == "a")["input_ids"]
                ids_BT = torch.tensor([opening + lm.tokenizer(answer, add_special_tokens=False)["input_ids"]])
                x_TD = residual_after(lm, LAYERS[side[:1].replace("c", "b")], ids_BT, torch.ones_like(ids_BT))[0]
                means[answer].append(x_TD[len(opening) :].mean(dim=0))
        hand_D = torch.stack(means[" Yes, sir."]).mean(dim=0) - torch.stack(means[" No."]).mean(dim=0)
        key = "source" if side == "a" else "own"
        torch.testing.assert_close(found[key][0], hand_D, atol=1e-5, rtol=1e-4)


def test_without_comparing_the_target_is_not_needed(tmp_path: Path, folders: dict[str, Path]) -> None:
    made = make(tmp_path, (str(folders["a"]), None))
    with pytest.raises(InputError, match="--model-path-b"):
        run(settings_of(from_prompts=made.prompts), made.workspace)
    artifact = run(settings_of(from_prompts=made.prompts, compare=False), made.workspace)
    assert "--no-compare" in info_of(artifact)["truth_missing"]
    assert "own" not in vectors_of(artifact)
    np.save(tmp_path / "v.npy", np.ones(32, np.float32))
    found = run(
        settings_of(
            vector=tmp_path / "v.npy",
            truth_prompts=made.prompts,
            model_path_b=str(folders["b"]),
        ),
        made.workspace,
    )
    rules = info_of(found)["truth"]["rules"]
    assert all(one["relabelled"] is None and abs(one["cosine"]) <= 1 for one in rules.values())


def test_an_interrupted_run_keeps_each_pass(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    scored, loaded = effect_module.mean_log_probs, harvested_module.load_model

    def dying(*args: Any, **options: Any) -> torch.Tensor:
        calls.append("score")
        if len(calls) == 6:
            raise KeyboardInterrupt
        return scored(*args, **options)

    monkeypatch.setattr(effect_module, "mean_log_probs", dying)
    wanted = settings_of(from_prompts=made.prompts)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, made.workspace)
    opened: list[str] = []

    def noting(ref: ModelRef, *args: Any) -> Any:
        opened.append(ref.name)
        return loaded(ref, *args)

    monkeypatch.setattr(harvested_module, "load_model", noting)
    artifact = run(wanted, made.workspace)
    assert len(opened) == 1  # the source's contrast was there
    passes = 2 * (1 + len(RULES) + 2 + 2 * len(RULES))
    assert len(calls) == passes + 2  # two passes were lost: the one that died, and its other sign
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
        ({"vector": Path("x"), "random_effects": 30}, "--random-effects"),
        ({"vector": Path("x"), "effect_strength": 0.0}, "--effect-strength"),
        ({"vector": Path("x"), "ridge": 0.0}, "--ridge"),
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


def call(capsys: pytest.CaptureFixture[str], made: Made, *args: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_cli(["--workspace", str(made.workspace.folder), "steer", *args])
    out, err = capsys.readouterr()
    return int(str(caught.value.code)), out, err


def widest(out: str) -> int:
    # The tiny models also write control characters, which take no room.
    return max(sum(character.isprintable() for character in line) for line in out.split("\n"))


FAST = ("--max-new-tokens", "6", "--random", "20", "--random-effects", "2", "--device", "cpu")


def test_the_command(made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = [str(path) for path in made.prompts]
    args = ["transfer", "--from", "A", "--to", "B", "--from-prompts", *prompts, *FAST]
    args += ["--prompt", "The [bold]quick", "It is", "--strength", "-1", "2"]
    code, out, _ = call(capsys, made, *args)
    assert code == 0
    assert widest(out) <= 80
    for word in (*RULES, "cos in B", "relab.", "effect", "The [bold]quick", "unsteered", "stitch -1", "own +2"):
        assert word in out
    code, out, _ = call(capsys, made, *args, "--json")
    found = json.loads(out)
    assert found["truth"]["rules"].keys() == set(RULES)
    assert len(found["generations"]) == 2 * (1 + 2 * (len(RULES) + 1))
    np.save(tmp_path / "v.npy", np.ones((2, 32), np.float32))
    code, out, _ = call(capsys, made, "transfer", "--from", "A", "--vector", str(tmp_path / "v.npy"), *FAST)
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
