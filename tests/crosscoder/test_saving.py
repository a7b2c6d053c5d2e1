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
    "format": 2, "width_a": 3, "width_b": 5, "n_a_only": 1, "n_shared": 4, "n_b_only": 2, "n_designated": 0,
    "tie": "none", "k": 3, "designated_k": 1.5, "selection": "sum", "combine": "sum", "scale_a": 0.1,
    "scale_b": 1 / 3, "threshold": 0.123456789, "threshold_designated": 0.25,
    "model_a": "one", "layer_a": 7, "model_b": "two/b", "layer_b": 0,
}  # fmt: skip


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *(({field: None}, DamagedError, rf"config\.json: field '{field}' is missing") for field in sorted(EVERY_FIELD)),
        ({"tied": True}, DamagedError, r"config\.json: field 'tied' is unknown"),
        ({"k": 1000}, DamagedError, r"config\.json: crosscoder: k must be"),
        ({"scale_a": "big"}, DamagedError, r"config\.json"),
        ({"format": 3}, InputError, r"config\.json: format 3 is newer"),
    ],
)
def test_what_is_wrong_with_a_config_is_named(
    tmp_path: Path, change: dict[str, Any], error: type, message: str
) -> None:
    """A field set to None is left out."""
    random_crosscoder(model_a="one", layer_a=1, model_b="two", layer_b=2).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in data.items() if value is not None})
    )
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w_enc_a": torch.zeros(10, 6)}, r"'w_enc_a' should be torch.float32 \(7, 6\), found torch.float32 \(10, 6\)"),
        ({"b_enc": torch.zeros(10).double()}, r"'b_enc' should be torch.float32"),
        ({"mask": torch.zeros(1)}, "'mask' is unknown"),
        ({"b_dec_a": None}, "'b_dec_a' is missing"),
    ],
)
def test_weights_must_fit_the_config_exactly(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    random_crosscoder().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | change
    save_file({name: value for name, value in weights.items() if value is not None}, tmp_path / "model.safetensors")
    with pytest.raises(DamagedError, match=message):
        load(tmp_path)


def test_neither_folder_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="is neither a folder nor a repository"):
        load(tmp_path / "absent")


def test_push_uploads_the_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, Any] = {}

    class Api:
        def create_repo(self, repository: str, **options: bool) -> None:
            uploaded.update(repository=repository, **options)

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:  # noqa: ARG002
            assert repo_id == uploaded["repository"]
            uploaded["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert random_crosscoder().push_to_hub("me/diff") == "https://hub/commit"
    files = ["config.json", "model.safetensors"]
    assert uploaded == {"repository": "me/diff", "private": False, "exist_ok": True, "files": files}
