"""Save and load: every field of the config comes back, and whatever is damaged is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig, load
from modeldiff.errors import DamagedError, InputError
from tests.crosscoder.made import random_crosscoder

EVERY_FIELD: dict[str, Any] = {
    "format": 2,
    "width_a": 3,
    "width_b": 5,
    "n_a_only": 1,
    "n_shared": 4,
    "n_b_only": 2,
    "n_designated": 0,
    "tie": "none",
    "k": 3,
    "designated_k": 1.5,
    "selection": "sum",
    "combine": "sum",
    "scale_a": 0.1,
    "scale_b": 1 / 3,
    "threshold": 0.123456789,
    "threshold_designated": 0.25,
    "model_a": "one",
    "layer_a": 7,
    "model_b": "two/b",
    "layer_b": 0,
}


def test_every_field_of_the_config_comes_back(tmp_path: Path) -> None:
    assert EVERY_FIELD.keys() == {f.name for f in dataclasses.fields(CrosscoderConfig)}
    crosscoder = random_crosscoder(**EVERY_FIELD)
    crosscoder.save_pretrained(tmp_path / "c")
    found = Crosscoder.from_pretrained(tmp_path / "c")
    assert dataclasses.asdict(found.config) == EVERY_FIELD
    for name, value in crosscoder.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    x_a, x_b = torch.randn(9, 3), torch.randn(9, 5)
    assert torch.equal(found.encode(x_a, x_b), crosscoder.encode(x_a, x_b))
    assert load(str(tmp_path / "c")).config == crosscoder.config


@pytest.mark.parametrize("field", sorted(EVERY_FIELD))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    random_crosscoder().save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    del data[field]
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(DamagedError, match=rf"config\.json: field '{field}' is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tied": True}, DamagedError, r"config\.json: field 'tied' is unknown"),
        ({"k": 1000}, DamagedError, r"config\.json: crosscoder: k must be"),
        ({"scale_a": "big"}, DamagedError, r"config\.json"),
        ({"format": 3}, InputError, r"config\.json: format 3 is newer"),
    ],
)
def test_senseless_configs_are_named(tmp_path: Path, change: dict[str, Any], error: type, message: str) -> None:
    random_crosscoder().save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_truncated_weights_are_named(tmp_path: Path) -> None:
    random_crosscoder().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedError, match=r"model\.safetensors: cannot be read as safetensors, it may be truncated"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        load(tmp_path)


def test_weights_must_fit_the_config_exactly(tmp_path: Path) -> None:
    random_crosscoder().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    changes: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"w_enc_a": torch.zeros(10, 6)}, r"'w_enc_a' should be torch.float32 \(7, 6\), found torch.float32 \(10, 6\)"),
        ({"b_enc": weights["b_enc"].double()}, r"'b_enc' should be torch.float32"),
        ({"mask": torch.zeros(1)}, "'mask' is unknown"),
    ]
    for change, message in changes:
        save_file({**weights, **change}, path)
        with pytest.raises(DamagedError, match=message):
            load(tmp_path)
    save_file({name: value for name, value in weights.items() if name != "b_dec_a"}, path)
    with pytest.raises(DamagedError, match="'b_dec_a' is missing"):
        load(tmp_path)


def test_neither_folder_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="is neither a folder nor a repository"):
        load(tmp_path / "absent")


def test_push_uploads_the_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            uploaded.update(repository=repository, private=private, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            assert repo_id == uploaded["repository"]
            assert commit_message
            uploaded["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert random_crosscoder().push_to_hub("me/diff") == "https://hub/commit"
    assert uploaded == {
        "repository": "me/diff",
        "private": False,
        "exist_ok": True,
        "files": ["config.json", "model.safetensors"],
    }
