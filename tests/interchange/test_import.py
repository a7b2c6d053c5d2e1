"""Dictionaries of other libraries, imported: their codes and reconstructions are those of the libraries' formulas."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeldiff.crosscoder import load
from modeldiff.errors import DamagedError, InputError
from modeldiff.interchange.run import ORIGIN_NAME, run
from modeldiff.interchange.settings import ImportSettings
from modeldiff.workspace import Artifact, Workspace
from tests.interchange import foreign
from tests.interchange.foreign import A_ONLY, B_ONLY, FEATURES, WIDTH, draw, written
from tests.made_activations import make_activations

NORMALISER = {
    "activation_mean": draw(2, WIDTH), "activation_std": torch.ones(2, WIDTH),
    "activation_global_scale": torch.tensor([0.3, 1.7]), "target_rms": torch.tensor(1.0),
}  # fmt: skip


def imported(workspace: Workspace, *sources: Path, width_b: int = WIDTH, **settings: Any) -> Artifact:
    make_activations(workspace, *foreign.activations(width_b))
    return run(ImportSettings(source=tuple(map(str, sources)), device="cpu", **settings), workspace)


def assert_says(artifact: Artifact, said: foreign.Said, *, width_b: int = WIDTH) -> None:
    """The artifact's code, put back into the library's order and units, and its reconstructions are these."""
    code_NF, xhat_NLD = said
    crosscoder, origin = load(artifact), load_file(artifact.folder / ORIGIN_NAME)
    f_NF = crosscoder.encode(*foreign.activations(width_b))
    assert (code_NF > 0).any(dim=0).sum() > FEATURES // 2, "most features fire somewhere"
    torch.testing.assert_close(f_NF / origin["scale"], code_NF[:, origin["feature"]].float(), atol=1e-5, rtol=1e-5)
    a_ND, b_ND = crosscoder.decode(f_NF)
    torch.testing.assert_close(a_ND, xhat_NLD[:, 0].float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(b_ND, xhat_NLD[:, 1, :width_b].float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("normaliser", [{}, NORMALISER, {"activation_mean": torch.full((2, WIDTH), torch.nan)}])
def test_batch_topk_of_dictionary_learning(
    tmp_path: Path, workspace: Workspace, number: int, normaliser: dict[str, Any]
) -> None:
    """Every code normalisation, with a normaliser of activations, without, and with one that is not used."""
    tensors = foreign.forks(
        threshold=0.7, k=torch.tensor(4, dtype=torch.int32), code_normalization_id=number, **normaliser
    )
    config = {"trainer": {"code_normalization_alpha_sae": 0.5, "code_normalization_alpha_cc": 0.25}}
    artifact = imported(workspace, written(tmp_path / "theirs", tensors, config))
    assert_says(artifact, foreign.forks_said(tensors, torch.stack(foreign.activations(), dim=1), (0.5, 0.25)))
    assert artifact.metrics["k"] == 4


def test_dedicated_features_are_found_by_their_zeros(tmp_path: Path, workspace: Workspace) -> None:
    """As dfc_learning saves them, compiled, with its own table beside the tensors. A file without threshold keeps every
    positive entry, and k is what is active."""
    tensors = foreign.forks()
    state: dict[str, Any] = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}
    state["_partition_config"] = {"dict_size": FEATURES, "model_a_exclusive_pct": 0.1, "model_b_exclusive_pct": 0.1}
    artifact = imported(workspace, written(tmp_path / "theirs", state, weights="model_final.pt"))
    code_NF, _ = said = foreign.forks_said(tensors, torch.stack(foreign.activations(), dim=1))
    assert_says(artifact, said)
    assert load(artifact).sizes == {"A": len(A_ONLY), "shared": FEATURES - 3, "B": len(B_ONLY)}
    origin = load_file(artifact.folder / ORIGIN_NAME)
    assert origin["feature"].tolist() == [3, 7, 1, 2, 4, 5, 6, 8, 9, 10, 11, 0]
    in_short = "3..3 -> 0..0; 7..7 -> 1..1; 1..2 -> 2..3; 4..6 -> 4..6; and 2 more ranges"
    assert artifact.metrics["numbers"] == in_short
    assert artifact.metrics["k"] == pytest.approx(float((code_NF > 0).sum(dim=1).float().mean()), abs=1)


def test_a_smaller_model_was_padded_with_zeros(tmp_path: Path, workspace: Workspace) -> None:
    width_b = WIDTH - 2
    x_a, x_b = foreign.activations(width_b)
    padded = torch.stack([x_a, torch.nn.functional.pad(x_b, (0, 2))], dim=1)
    tensors = foreign.forks(threshold=0.7, k=torch.tensor(4), **NORMALISER)
    with pytest.raises(InputError, match="reads 6 numbers of model B, activations:1 holds 4"):
        imported(workspace, written(tmp_path / "not zero", tensors), width_b=width_b)
    tensors["decoder.weight"][1, :, width_b:] = 0
    artifact = imported(workspace, written(tmp_path / "zero", tensors), width_b=width_b)
    assert_says(artifact, foreign.forks_said(tensors, padded), width_b=width_b)


@pytest.mark.parametrize("jump", [False, True])
def test_crosscode(tmp_path: Path, workspace: Workspace, jump: bool) -> None:
    tensors = foreign.crosscode(jump)
    config = {"activation_fn": {"classname": "ReLUActivation", "cfg": {}}}
    artifact = imported(workspace, written(tmp_path / "theirs", tensors, None if jump else config, "model.pt"))
    assert_says(artifact, foreign.crosscode_said(tensors, torch.stack(foreign.activations(), dim=1)))


@pytest.mark.parametrize("jump", [False, True])
def test_two_single_dictionaries_are_exclusive_features(tmp_path: Path, workspace: Workspace, jump: bool) -> None:
    saes = [foreign.sae(WIDTH, seed=seed, jump=jump) for seed in (0, 3)]
    config = {"architecture": "jumprelu" if jump else "standard", "apply_b_dec_to_input": True}
    folders = [
        written(tmp_path / str(number), tensors, config, "sae_weights.safetensors")
        for number, tensors in enumerate(saes)
    ]
    artifact = imported(workspace, *folders)
    said = [foreign.sae_said(*one) for one in zip(saes, foreign.activations(), strict=True)]
    codes, xhat = zip(*said, strict=True)
    assert load(artifact).sizes == {"A": FEATURES, "shared": 0, "B": FEATURES}
    assert_says(artifact, (torch.cat(codes, dim=1), torch.stack(xhat, dim=1)))


def test_one_dictionary_on_both_models_side_by_side(tmp_path: Path, workspace: Workspace) -> None:
    tensors = foreign.sae(2 * WIDTH, jump=True)
    config = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    artifact = imported(workspace, written(tmp_path / "theirs", tensors, config, "sae_weights.safetensors"))
    code_NF, xhat_ND = foreign.sae_said(tensors, torch.cat(foreign.activations(), dim=1), minus=False)
    assert_says(artifact, (code_NF, xhat_ND.unflatten(1, (2, WIDTH))))


def test_a_threshold_for_the_largest_of_each_token(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused unless asked for; then as many are active on average, and what stayed the same is what was counted."""
    tensors, k = foreign.topk(), 3
    folder = written(tmp_path / "theirs", tensors, {"k": k})
    with pytest.raises(InputError, match="keeps the 3 largest entries of each token, at inference too"):
        imported(workspace, folder)
    artifact = imported(workspace, folder, fit_threshold=True)
    assert "2 features write to model A alone but read both: they are shared features here" in capsys.readouterr().err
    code_NF, _ = foreign.topk_said(tensors, torch.stack(foreign.activations(), dim=1), k)
    f_NF = load(artifact).encode(*foreign.activations())
    both, either = ((f_NF > 0) & (code_NF > 0)).sum(), ((f_NF > 0) | (code_NF > 0)).sum()
    found = artifact.metrics["threshold_fitted"]
    assert found["same"] == pytest.approx(float(both / either))
    assert found["l0"] == pytest.approx(k, rel=0.05) == float((f_NF > 0).sum(dim=1).float().mean())
    kept = (f_NF > 0) & (code_NF > 0)
    torch.testing.assert_close(f_NF[kept], code_NF[kept], atol=1e-5, rtol=1e-5)


class _Code:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('run')",))


_NO_NUMBER = torch.full((FEATURES,), torch.nan)
_MANY = torch.zeros(1).expand(2, 1 << 40, 1 << 20)  # a file of few bytes
_SAE = "sae_weights.safetensors"
REFUSED: dict[str, tuple[dict[str, Any], Any, str, str, type[Exception]]] = {
    "decoupled": (foreign.forks(threshold=[0.1, 0.2], code_normalization_id=5), None, "ae.pt", "DECOUPLED", InputError),
    "norm": (foreign.forks(threshold=0.1, code_normalization_id=9), None, "ae.pt", "none of 1 to 5", DamagedError),
    "layers": (foreign.forks(**{"encoder.weight": draw(3, WIDTH, 4)}), None, "ae.pt", "3 layers or models", InputError),
    "shape": (foreign.forks(**{"encoder.bias": draw(3)}), None, "ae.pt", r"bias' should be .*\(12\)", DamagedError),
    "nan": (foreign.forks(**{"encoder.bias": _NO_NUMBER}), None, "ae.pt", "are not finite", DamagedError),
    "code": ({"encoder.weight": _Code()}, None, "ae.pt", "hold code, which is never run", DamagedError),
    "huge": ({"encoder.weight": _MANY}, None, "ae.pt", "has no tensors", InputError),
    "config": (foreign.topk(), {"k": "many"}, "model.safetensors", "'k' is 'many'", DamagedError),
    "gated": (foreign.sae(WIDTH * 2), {"architecture": "gated"}, _SAE, "'gated'", InputError),
    "single": (foreign.sae(WIDTH), {}, _SAE, "or one of both side by side", InputError),
    "more": (foreign.forks(gate=draw(FEATURES)), None, "ae.pt", "has a tensor 'gate'", InputError),
    "unknown": ({"weight": draw(2)}, None, "ae.pt", "none of the formats", InputError),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "config", "weights", "message", "kind"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, workspace: Workspace, tensors: Any, config: Any, weights: str, message: str, kind: type[Exception]
) -> None:
    if any(isinstance(value, _Code) for value in tensors.values()):
        folder = tmp_path / "theirs"
        folder.mkdir()
        (folder / weights).write_bytes(pickle.dumps(tensors))
    else:
        folder = written(tmp_path / "theirs", tensors, config, weights)
    with pytest.raises(kind, match=message):
        imported(workspace, folder)
    assert not workspace.artifacts("crosscoder")


def test_files_that_moved_are_not_imported_again(tmp_path: Path, workspace: Workspace) -> None:
    first = imported(workspace, written(tmp_path / "here", foreign.forks()))
    assert imported(workspace, (tmp_path / "here").rename(tmp_path / "there")).ref == first.ref
