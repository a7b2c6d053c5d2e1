"""Spliced losses on two tiny models: known answers with a dictionary made by hand, refusals, interruptions.

Legend: T tokens, R replaced tokens, D width, W windows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import modeldiff.features.measures.evaluate.run as evaluate_module
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.errors import InputError
from modeldiff.features.measures.evaluate import EvaluateSettings
from modeldiff.features.measures.evaluate.run import SCOPES, VARIANTS, loss_recovered, mean_and_error, run
from modeldiff.features.measures.models import Window, sample_windows
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.lm.load import LanguageModel, ModelRef, load_model
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.features.made_crosscoder import publish
from tests.harvest.conftest import make_texts
from tests.made_activations import make_activations
from tests.tiny_models import save_tiny

WIDTH_A, WIDTH_B = 16, 24
LAYERS = {"a": 1, "b": 0}
N_SHARED_COORDINATES = 8
PARTS: dict[str, Any] = {"device": "cpu", "outlier_factor": 0.0, "pairs": 300, "batch_tokens": 256}


class Made(NamedTuple):
    """A harvest of two tiny models and where they are."""

    workspace: Workspace
    activations: Artifact
    models: dict[str, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, texts = tmp_path_factory.mktemp("models"), make_texts()
    return {
        "a": save_tiny(folder / "a", "gpt2", texts=texts, width=WIDTH_A),
        "b": save_tiny(folder / "b", "llama", texts=texts[:20], width=WIDTH_B, vocab_size=400, layers=2, add_bos=True),
        "other": save_tiny(folder / "other", "gpt2", texts=texts, width=WIDTH_A, seed=3),
    }


def harvest(folder: Path, models: dict[str, Path]) -> Artifact:
    (folder.parent / "texts.txt").write_text("\n\n".join(make_texts()), encoding="utf-8")
    settings = HarvestSettings(
        model_a=str(models["a"]), model_b=str(models["b"]), texts=(str(folder.parent / "texts.txt"),), pairs=500,
        shard_pairs=200, context=48, layer_a=LAYERS["a"], layer_b=LAYERS["b"], device="cpu", storage="float32",
    )  # fmt: skip
    return run_harvest(settings, Workspace(folder))


def perfect() -> Crosscoder:
    """Features come in pairs that read +x_i and -x_i of one coordinate and write it back: the reconstruction is the
    activation, bit for bit. A's last N_SHARED_COORDINATES coordinates are shared features' (which ignore B), its first
    ones and all of B's are exclusive features'."""
    n_a, n_shared, n_b = 2 * (WIDTH_A - N_SHARED_COORDINATES), 2 * N_SHARED_COORDINATES, 2 * WIDTH_B
    crosscoder = Crosscoder(
        CrosscoderConfig(
            width_a=WIDTH_A, width_b=WIDTH_B, n_a_only=n_a, n_shared=n_shared, n_b_only=n_b, k=8, combine="sum"
        )
    )
    signed = [torch.stack([eye, -eye], dim=1).flatten(0, 1) for eye in (torch.eye(WIDTH_A), torch.eye(WIDTH_B))]
    with torch.no_grad():
        for weight in (crosscoder.w_enc_a, crosscoder.w_dec_a):
            weight.copy_(signed[0])
        for weight in (crosscoder.w_enc_b, crosscoder.w_dec_b):
            weight[n_shared:] = signed[1]
    return crosscoder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Made:
    folder = tmp_path_factory.mktemp("harvest") / "ws"
    activations = harvest(folder, models)
    publish(Workspace(folder), perfect(), activations)
    return Made(Workspace(folder), activations, models)


@pytest.fixture(scope="module")
def artifact(made: Made) -> Artifact:
    return run(EvaluateSettings(**PARTS), made.workspace)


def figures(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(artifact.file("evaluation.json").read_text())
    return found


def by_hand(lm: LanguageModel, layer: int, window: Window, side: str, coordinates: slice, value: Any) -> Any:
    """(log-probabilities (T, V) with `value` in some coordinates of the residual stream at the pairs, next tokens)."""

    def hook(_module: Any, _args: Any, output: Any) -> None:
        x_TD = (output[0] if isinstance(output, tuple) else output)[0]
        x_TD[torch.from_numpy(window.token[side]), coordinates] = value

    ids_T = torch.from_numpy(window.ids[side])
    handle = lm.blocks[layer].register_forward_hook(hook)
    with torch.inference_mode():
        logits_TV = lm.model(input_ids=ids_T[None], use_cache=False).logits[0]
    handle.remove()
    return logits_TV[:-1].double().log_softmax(-1), ids_T[1:]


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_perfect_dictionary_gives_the_models_own_loss(artifact: Artifact, side: str) -> None:
    for scope in SCOPES:
        at = figures(artifact)["sides"][side][scope]
        losses = at["losses"]
        assert losses["clean"]["kl"] == losses["clean"]["increase"] == 0
        assert losses["crosscoder"] == losses["stored"]
        assert losses["crosscoder"]["loss"] == pytest.approx(losses["clean"]["loss"], abs=1e-6)
        assert losses["crosscoder"]["kl"] == pytest.approx(0, abs=1e-7)  # float32
        assert at["loss_recovered"]["crosscoder"]["zero"] in (None, pytest.approx(1, abs=1e-4))
        for ablated in ("mean", "zero"):
            assert losses[ablated]["kl"] > 0.01


@pytest.mark.parametrize("side", ["a", "b"])
def test_only_the_tokens_of_pairs_are_replaced(made: Made, artifact: Artifact, side: str) -> None:
    lm = load_model(ModelRef(str(made.models[side])), torch.device("cpu"), torch.float32)
    store = ActivationStore(made.activations)
    windows = sample_windows(store, PARTS["pairs"])
    mean_D = torch.cat([store.read_side(side, window.rows) for window in windows]).mean(dim=0)
    found = load_file(artifact.file(f"losses_{side}.safetensors"))
    for number in (0, len(windows) // 2, len(windows) - 1):
        window = windows[number]
        at_R = torch.from_numpy(window.token[side])
        assert 0 < len(at_R) < len(window.ids[side])

        exclusive = slice(0, WIDTH_A - N_SHARED_COORDINATES if side == "a" else WIDTH_B)
        clean_TV, next_T = by_hand(lm, LAYERS[side], window, side, slice(0, 0), 0)
        inside_T = torch.isin(torch.arange(len(next_T)), at_R)
        assert found["positions"][number].tolist() == [len(next_T), int(inside_T.sum())]
        every = slice(None)
        changes = {
            "clean": (slice(0, 0), 0),
            "shared_only": (exclusive, 0),
            "mean": (every, mean_D),
            "zero": (every, 0),
        }
        for variant, (coordinates, value) in changes.items():
            log_TV, _ = by_hand(lm, LAYERS[side], window, side, coordinates, value)
            loss_T = -log_TV.gather(1, next_T[:, None])[:, 0]
            kl_T = (clean_TV.exp() * (clean_TV - log_TV)).sum(-1)
            for scope, within_T in zip(SCOPES, (torch.ones_like(inside_T), inside_T), strict=True):
                place = (number, VARIANTS.index(variant), SCOPES.index(scope))
                assert found["loss"][place] == pytest.approx(float(loss_T[within_T].sum()), rel=1e-5)
                assert found["kl"][place] == pytest.approx(float(kl_T[within_T].sum()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("side", ["a", "b"])
def test_the_figures_follow_from_the_sums(artifact: Artifact, side: str) -> None:
    sums, one = load_file(artifact.file(f"losses_{side}.safetensors")), figures(artifact)["sides"][side]
    for number, scope in enumerate(SCOPES):
        mean_V = sums["loss"][:, :, number].sum(0) / sums["positions"][:, number].sum()
        of = dict(zip(VARIANTS, mean_V, strict=True))
        assert {variant: row["loss"] for variant, row in one[scope]["losses"].items()} == pytest.approx(of)
        assert one[scope]["exclusive"]["increase"] == pytest.approx(of["shared_only"] - of["crosscoder"])
    assert one["stored_gap"] < 1e-4


def test_loss_recovered_and_the_error_of_a_mean_over_windows() -> None:
    assert [loss_recovered(loss, 4.0, 2.0) for loss in (2.0, 4.0, 2.5, 5.0)] == [1, 0, 0.75, -0.5]
    assert loss_recovered(2.5, 2.0, 2.0) is None
    ones_W, values_W = np.ones(4, np.int64), np.array([1.0, 2.0, 3.0, 6.0])
    # The usual error of a mean; tokens that all say the same within a window are worth no more than one.
    for tokens in (1, 10):
        expected = (3, pytest.approx(float(values_W.std(ddof=1)) / 2))
        assert mean_and_error(tokens * values_W, tokens * ones_W) == expected
    assert mean_and_error(values_W[:1], ones_W[:1]) == (1, None)


def test_outliers_keep_the_models_own_activation(made: Made) -> None:
    store = ActivationStore(made.activations)
    windows = sample_windows(store, PARTS["pairs"])
    norms = {
        side: torch.cat([store.read_side(side, w.rows) for w in windows]).norm(dim=1) / info.median_norm
        for side, info in store.info.sides.items()
    }
    kept = (norms["a"] <= 1.1) & (norms["b"] <= 1.1)
    artifact = run(EvaluateSettings(**{**PARTS, "outlier_factor": 1.1}), made.workspace)
    assert artifact.metrics["outliers"] == int((~kept).sum()) > 20
    for side in ("a", "b"):
        predicts = torch.cat([torch.from_numpy(w.token[side]) < len(w.ids[side]) - 1 for w in windows])
        assert figures(artifact)["sides"][side]["positions"]["replaced"] == int((kept & predicts).sum())
    with pytest.raises(InputError, match="no pair is left to replace: raise --outlier-factor"):
        run(EvaluateSettings(**{**PARTS, "outlier_factor": 0.01}), made.workspace)


def test_an_interrupted_run_keeps_the_model_it_has_measured(
    made: Made, artifact: Artifact, tmp_path: Path, dying: Callable[..., list[Any]]
) -> None:
    workspace = Workspace(tmp_path / "ws")
    publish(workspace, perfect(), harvest(tmp_path / "ws", made.models))
    calls = dying(evaluate_module, "measure", 2)
    with pytest.raises(KeyboardInterrupt):
        run(EvaluateSettings(**PARTS), workspace)
    resumed = run(EvaluateSettings(**PARTS), workspace)
    assert [model.side for model, *_ in calls] == ["a", "b", "b"]
    assert resumed.manifest.digest == artifact.manifest.digest
    assert run(EvaluateSettings(**{**PARTS, "batch_tokens": 99}), workspace).ref == resumed.ref


def test_another_model_is_refused_and_a_rounded_one_is_not(made: Made, models: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"\(other\) gives other activations.*--model-path-a"):
        run(EvaluateSettings(**PARTS, model_path_a=str(models["other"])), made.workspace)
    with pytest.raises(InputError, match="model b has width 24, but the activations were 16 wide"):
        run(EvaluateSettings(**PARTS, model_path_a=str(models["b"])), made.workspace)
    rounded = figures(run(EvaluateSettings(**PARTS, dtype="bfloat16"), made.workspace))["sides"]["a"]
    assert 1e-4 < rounded["stored_gap"] < 0.05
    assert 0 < rounded["all"]["losses"]["stored"]["kl"] < 0.01


def test_imports_without_models_layers_texts_or_the_models_own_token_ids_are_refused(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    workspace = Workspace(tmp_path / "ws")
    publish(workspace, perfect(), None)
    incomplete: list[tuple[dict[str, Any], str]] = [
        ({}, "imported without naming model A: say where it is with --model-path-a"),
        ({"models": ("a", "b")}, "without the layer of model A"),
        ({"models": ("a", "b"), "layers": (0, 0)}, "was imported without texts"),
    ]
    for known, message in incomplete:
        activations = make_activations(workspace, torch.ones(9, WIDTH_A), torch.ones(9, WIDTH_B), **known)
        with pytest.raises(InputError, match=message):
            run(EvaluateSettings(**PARTS, activations=activations.ref), workspace)
    for side, width in (("a", WIDTH_A), ("b", WIDTH_B)):
        np.save(tmp_path / f"{side}.npy", np.random.default_rng(0).normal(size=(2, width)).astype(np.float32))
    for ids, message in (
        ({}, "imported without token ids"),
        ({"ids_a": [1, 9999], "ids_b": [1, 2]}, "has token 9999 on side A, but model a has only"),
    ):
        (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "ab cd", "ends": [2, 5], **ids}))
        imported = run_harvest(
            HarvestSettings(
                import_a=str(tmp_path / "a.npy"), import_b=str(tmp_path / "b.npy"), layer_a=0, layer_b=0,
                import_texts=tmp_path / "texts.jsonl", model_a=str(models["a"]), model_b=str(models["b"]),
            ),
            workspace,
        )  # fmt: skip
        with pytest.raises(InputError, match=message):
            run(EvaluateSettings(**PARTS, activations=imported.ref), workspace)


def test_the_command_prints_a_table_or_json(made: Made, artifact: Artifact, printed: Callable[..., str]) -> None:
    options = ["evaluate", "--pairs", "300", "--outlier-factor", "0", "--device", "cpu"]
    assert json.loads(printed(made.workspace, *options, "--json"))["evaluation"] == figures(artifact)
    assert "shared only" in printed(made.workspace, *options)
