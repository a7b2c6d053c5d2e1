"""What a model's name means and what identifies its contents."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from modeldiff.errors import InputError
from modeldiff.lm.ref import ModelRef, locate, model_identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy_of_llama(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder_of("llama"), tmp_path / "llama"))


def test_the_identity_of_a_folder_does_not_depend_on_its_place(
    folder_of: Callable[[str], Path], copy_of_llama: Path
) -> None:
    identity = model_identity(ModelRef(str(copy_of_llama)))
    assert identity == model_identity(ModelRef(str(folder_of("llama"))))
    assert identity["name"] == "llama"
    assert len(identity["digest"]) == 64


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_the_identity_changes_with_every_file_that_matters(copy_of_llama: Path, file: str) -> None:
    before = model_identity(ModelRef(str(copy_of_llama)))
    data = bytearray((copy_of_llama / file).read_bytes())
    data[-1:] = b" " + data[-1:]
    (copy_of_llama / file).write_bytes(data)
    assert model_identity(ModelRef(str(copy_of_llama)))["digest"] != before["digest"]


def test_the_identity_ignores_files_that_change_nothing(copy_of_llama: Path) -> None:
    before = model_identity(ModelRef(str(copy_of_llama)))
    (copy_of_llama / "README.md").write_text("about")
    (copy_of_llama / "optimizer.bin").write_bytes(b"1")
    assert model_identity(ModelRef(str(copy_of_llama))) == before


def test_the_caller_may_supply_digests_of_files(copy_of_llama: Path) -> None:
    seen: list[str] = []

    def digest(path: Path) -> str:
        seen.append(path.name)
        return "same"

    first = model_identity(ModelRef(str(copy_of_llama)), digest)
    (copy_of_llama / "model.safetensors").write_bytes(b"other")
    assert model_identity(ModelRef(str(copy_of_llama)), digest) == first
    assert "model.safetensors" in seen
    assert "config.json" in seen


def test_a_gguf_file_is_identified_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF one")
    first = model_identity(ModelRef(str(file)))
    assert first["name"] == "small.gguf"
    (tmp_path / "config.json").write_text("{}")
    assert model_identity(ModelRef(str(file))) == first
    file.write_bytes(b"GGUF two")
    assert model_identity(ModelRef(str(file))) != first


def test_a_hub_name_is_identified_by_the_commit_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "models--org--small"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_identity(ModelRef("org/small")) == {"name": "org/small", "commit": COMMIT}
    assert model_identity(ModelRef("org/small", revision=COMMIT)) == {"name": "org/small", "commit": COMMIT}
    with pytest.raises(InputError, match=r"revision 'v2'.* is neither a local folder nor in the hub's local cache"):
        locate(ModelRef("org/small", revision="v2"))


def test_names_that_mean_no_model_are_one_line_errors(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("x")
    cases = {
        "org/unknown": "neither a local folder nor in the hub's local cache.*HF_HUB_OFFLINE",
        str(tmp_path / "nowhere"): "no model folder .*nowhere",
        "./nowhere": "no model folder ./nowhere",
        str(tmp_path / "no.gguf"): "no GGUF file",
        str(tmp_path): "has no config.json: expected a model saved by save_pretrained",
        str(file): "is a file: expected a model folder",
        "": "no model folder|has no config.json",
    }
    for name, expected in cases.items():
        with pytest.raises(InputError, match=expected) as caught:
            locate(ModelRef(name))
        assert "\n" not in str(caught.value)


def test_a_folder_with_only_a_gguf_file_says_which_path_to_give(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"give the path of the GGUF file, .*m\.gguf"):
        locate(ModelRef(str(tmp_path)))


def test_a_revision_of_a_local_folder_is_refused(copy_of_llama: Path) -> None:
    with pytest.raises(InputError, match="revision 'main' is only for models on the hub"):
        locate(ModelRef(str(copy_of_llama), revision="main"))
