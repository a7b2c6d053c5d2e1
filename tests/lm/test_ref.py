"""What a model's name means and what identifies its contents."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modeldiff.errors import InputError
from modeldiff.lm.ref import ModelRef, locate, model_identity
from tests.lm.conftest import COMMIT


def test_the_identity_of_a_folder_does_not_depend_on_its_place(folder_of: Callable[[str], Path], llama: Path) -> None:
    identity = model_identity(ModelRef(str(llama)))
    assert identity == model_identity(ModelRef(str(folder_of("llama"))))
    assert identity["name"] == "llama"
    # Nor on files that change nothing.
    (llama / "README.md").write_text("about")
    (llama / "optimizer.bin").write_bytes(b"1")
    (llama / "train.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    (llama / "corpus.txt").write_text("text")
    assert model_identity(ModelRef(str(llama))) == identity


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_the_identity_changes_with_every_file_that_matters(llama: Path, file: str) -> None:
    before = model_identity(ModelRef(str(llama)))
    data = bytearray((llama / file).read_bytes())
    data[-1:] = b" " + data[-1:]
    (llama / file).write_bytes(data)
    assert model_identity(ModelRef(str(llama)))["digest"] != before["digest"]


def test_a_gguf_file_is_identified_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF one")
    first = model_identity(ModelRef(str(file)))
    assert first["name"] == "small.gguf"
    (tmp_path / "config.json").write_text("{}")
    assert model_identity(ModelRef(str(file))) == first
    file.write_bytes(b"GGUF two")
    assert model_identity(ModelRef(str(file))) != first


@pytest.mark.usefixtures("small_on_the_hub")
def test_a_hub_name_is_identified_by_the_commit_in_the_cache() -> None:
    assert model_identity(ModelRef("org/small")) == {"name": "org/small", "commit": COMMIT}
    assert model_identity(ModelRef("org/small", revision=COMMIT)) == {"name": "org/small", "commit": COMMIT}
    with pytest.raises(InputError, match=r"revision 'v2'.* is neither a local folder nor in the hub's local cache"):
        locate(ModelRef("org/small", revision="v2"))


def test_names_that_mean_no_model_are_one_line_errors(tmp_path: Path) -> None:
    file, gguf, other = tmp_path / "notes.txt", tmp_path / "gguf", tmp_path / "other"
    file.write_text("x")
    for folder in (gguf, other):
        folder.mkdir()
    (gguf / "m.gguf").write_bytes(b"GGUF")
    cases = {
        "org/unknown": "neither a local folder nor in the hub's local cache.*HF_HUB_OFFLINE",
        str(tmp_path / "nowhere"): "no model folder .*nowhere",
        "./nowhere": "no model folder ./nowhere",
        str(tmp_path / "no.gguf"): "no GGUF file",
        str(other): "has no config.json: expected a model saved by save_pretrained",
        str(gguf): r"give the path of the GGUF file, .*m\.gguf",
        str(file): "is a file: expected a model folder",
        "": "no model folder|has no config.json",
    }
    for name, expected in cases.items():
        with pytest.raises(InputError, match=expected) as caught:
            locate(ModelRef(name))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="revision 'main' is only for models on the hub"):
        locate(ModelRef(str(other), revision="main"))
