"""Our crosscoders in files of other libraries: what those make of the files, by their formulas, is what ours says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import InputError
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.interchange import dictionary_learning, neuronpedia, saelens
from modeldiff.workspace import Workspace
from tests.crosscoder.made import DSF, random_crosscoder
from tests.features.made_crosscoder import made_pair
from tests.interchange import foreign

SCALES = {"scale_a": 0.4, "scale_b": 2.5}


def activations() -> tuple[torch.Tensor, torch.Tensor]:
    return foreign.draw(100, 6) * 2 + 1, foreign.draw(100, 9) * 0.3


def assert_same(crosscoder: Crosscoder, code_BF: torch.Tensor, xhat: list[torch.Tensor]) -> None:
    f_BF = crosscoder.encode(*activations())
    assert 0.05 < (f_BF > 0).float().mean() < 0.9
    torch.testing.assert_close(code_BF.float(), f_BF, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(crosscoder.decode(f_BF), xhat, strict=True):
        torch.testing.assert_close(theirs.float(), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("selection", ["activation", "l2", "sum"])
@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_dictionary_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, combine: str) -> None:
    """Exclusive features are zeros in the other model, and the smaller model is padded with zeros."""
    crosscoder = random_crosscoder(threshold=0.5, selection=selection, combine=combine, **SCALES)
    order = dictionary_learning.write(crosscoder, tmp_path)["order"]
    tensors = load_file(tmp_path / "model.safetensors")
    x_a, x_b = activations()
    monkeypatch.setattr(foreign, "FEATURES", 10)
    code, xhat = foreign.forks_said(tensors, torch.stack([torch.nn.functional.pad(x_a, (0, 3)), x_b], dim=1))
    back = torch.cat([torch.arange(*order[part]) for part in ("A", "shared", "B")])
    assert_same(crosscoder, code[:, back], [xhat[:, 0, :6], xhat[:, 1]])
    assert not tensors["decoder.weight"][1, : order["A"][1]].any()
    assert not tensors["decoder.weight"][0, :, 6:].any()


@pytest.mark.parametrize(
    "config", [{"selection": "mean"}, {"combine": "mean", "selection": "l2"}, DSF, {"threshold": 0}]
)
def test_saelens_side_by_side(tmp_path: Path, config: dict[str, Any]) -> None:
    """A threshold for each feature holds every selection, and designated features with a threshold of their own."""
    values = {"threshold": 0.5, "threshold_designated": 1.0 if config is DSF else 0.0, **SCALES, **config}
    crosscoder = random_crosscoder(**values)
    saelens.write(crosscoder, tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    about = json.loads((tmp_path / "cfg.json").read_text())
    assert about["architecture"] == ("jumprelu" if values["threshold"] else "standard")
    assert about["d_in"] == 15
    code, xhat = foreign.sae_said(tensors, torch.cat(activations(), dim=1), minus=about["apply_b_dec_to_input"])
    assert_same(crosscoder, code, list(xhat.split([6, 9], dim=1)))


def test_a_selection_without_counterpart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no selection like 'mean': export to saelens"):
        dictionary_learning.write(random_crosscoder(selection="mean"), tmp_path)


def test_neuronpedia_gets_what_its_upload_checks(tmp_path: Path, workspace: Workspace) -> None:
    made_pair(workspace)
    features = run_features(FeaturesSettings(predictability=False, device="cpu", outlier_factor=0.0), workspace)
    written = neuronpedia.write(features, tmp_path)["written"]
    partitions = json.loads(features.file("features.json").read_text())["partitions"]
    for side, other in (("a", "B"), ("b", "A")):
        (batch,) = [json.loads(path.read_text()) for path in sorted((tmp_path / side).iterdir())]
        assert batch["modelId"] == batch["modelId"].lower()
        assert 1 <= len(batch["features"]) == written[side]["features"] <= 128
        for one in batch["features"]:
            assert one["index"] not in range(*partitions[other])
            assert 0 < one["density"] <= 1
            assert one["activations"]
            for shown in one["activations"]:
                assert len(shown["tokens"]) == len(shown["values"]) > 0
                assert all(shown["tokens"])
                assert max(shown["values"]) > 0
