"""Loading saved models of every architecture, and what is said when one cannot be loaded."""

import importlib.util
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modeldiff.errors import DamagedError, InputError, MachineError, ModeldiffError
from modeldiff.lm.load import LanguageModel, ModelRef, load_model, load_tokenizer, read_geometry
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
# Where each architecture keeps its blocks: known here, never in the package.
PLACES = {"gpt2": "transformer.h", "gptj": "transformer.h", "bloom": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def _load(folder: Path, **changes: Any) -> LanguageModel:
    return load_model(ModelRef(str(folder), **changes), CPU, torch.float32)


def _refused(folder: Path, error: type[ModeldiffError], message: str, **changes: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        _load(folder, **changes)
    assert "\n" not in str(caught.value)


def _change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_saved_folder_loads_with_its_shape_blocks_and_tokenizer(
    lm_of: Callable[[str], LanguageModel], folder_of: Callable[[str], Path], arch: str
) -> None:
    lm = lm_of(arch)
    assert (lm.n_layers, lm.width) == (3, 36 if arch == "gpt_oss" else 32)
    assert (lm.device, lm.dtype, lm.name) == (CPU, torch.float32, arch)
    assert lm.max_positions == (None if arch == "bloom" else 256)
    geometry = read_geometry(ModelRef(str(folder_of(arch))))
    assert (geometry.n_layers, geometry.width, geometry.max_positions) == (3, lm.width, lm.max_positions)
    assert geometry.layer(None, "--layer-a") == 1
    blocks = lm.model.get_submodule(PLACES.get(arch, "model.layers"))
    assert all(found is block for found, block in zip(lm.blocks, blocks, strict=True))
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    text = "The quick 東京 😀"
    assert lm.tokenizer.decode(lm.tokenizer(text)["input_ids"]) == text
    saved = load_file(folder_of(arch) / "model.safetensors")
    loaded = lm.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items() if name in loaded)


def test_loading_a_local_folder_asks_nothing_of_the_network(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tried: list[object] = []

    def refuse(*args: object, **_kwargs: object) -> None:
        tried.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    _load(folder_of("gpt2"))
    assert tried == []
    # Nor does it write warnings or bars to the terminal.
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("small_on_the_hub")
def test_a_hub_name_loads_from_the_local_cache() -> None:
    lm = load_model(ModelRef("org/small"), CPU, torch.float32)
    assert (lm.name, lm.n_layers) == ("org/small", 3)


def test_layers_and_lengths_out_of_range_are_named(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("llama")
    lm.check_layer(0)
    lm.check_layer(2)
    lm.check_length(256)
    for layer in (-1, 3):
        with pytest.raises(InputError, match=f"^layer {layer} is out of range: model llama has blocks 0 to 2$"):
            lm.check_layer(layer)
    with pytest.raises(InputError, match="257 tokens are too long for model llama, which has 256 positions"):
        lm.check_length(257)


def test_files_that_are_not_the_models_own_are_left_alone(llama: Path) -> None:
    (llama / "train.json").write_text('{"text": "one record a line"}\n{"text": "is no JSON file"}\n')
    assert _load(llama).n_layers == 3


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_truncated_file_is_damage_that_is_named(llama: Path, file: str) -> None:
    content = (llama / file).read_bytes()
    for kept in (len(content) - 20, 0):
        (llama / file).write_bytes(content[:kept])
        _refused(llama, DamagedError, f"llama/{file} is damaged")


def test_a_missing_shard_is_named(llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    (llama / "model.safetensors").unlink()
    model.save_pretrained(llama, max_shard_size="20KB")
    assert _load(llama).n_layers == 3
    shard = sorted(llama.glob("model-*.safetensors"))[1]
    shard.unlink()
    _refused(llama, InputError, f"cannot be loaded: .*{shard.name}")


def test_weights_that_lack_tensors_are_not_filled_with_random_numbers(llama: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    _refused(llama, DamagedError, r"lack 1 tensors .* such as model\.layers\.1\.mlp\.up_proj\.weight")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"intermediate_size": 48}, DamagedError, r"do not fit its config\.json"),
        ({"num_hidden_layers": "twelve"}, InputError, "llama cannot be loaded: .*num_hidden_layers"),
        (
            {"model_type": "llama_from_the_future"},
            InputError,
            "does not know the architecture of llama: run `pip install -U transformers`",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used(
    llama: Path, changes: dict[str, Any], error: type[ModeldiffError], message: str
) -> None:
    _change_config(llama, **changes)
    _refused(llama, error, message)


def test_pickled_weights_are_refused(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    _refused(llama, InputError, r"no file named model\.safetensors")


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    for arch, expected in {"gpt2": "comes without tokenizer files", "llama": "^tokenizer .* cannot be loaded"}.items():
        tiny_model(arch, 300).save_pretrained(tmp_path / arch)
        with pytest.raises(InputError, match=expected) as caught:
            load_tokenizer(ModelRef(str(tmp_path / arch)))
        assert "\n" not in str(caught.value)


def test_models_that_do_not_predict_the_next_token_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    t5 = transformers.T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    bert = transformers.BertConfig(vocab_size=320, initializer_range=0.5, **sizes)
    models = {"encoder": transformers.BertLMHeadModel(bert), "translator": transformers.T5ForConditionalGeneration(t5)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        _refused(tmp_path / name, InputError, f"model {name} is not a causal language model")


def test_code_that_comes_with_a_model_runs_only_when_asked(llama: Path) -> None:
    _change_config(
        llama,
        model_type="home_made",
        auto_map={"AutoConfig": "code.HomeConfig", "AutoModelForCausalLM": "code.HomeModel"},
    )
    (llama / "code.py").write_text("raise RuntimeError('this code was run')\n")
    _refused(llama, InputError, r"brings its own Python code: read it, then run it with --trust-remote-code")
    _refused(llama, InputError, "cannot be loaded: RuntimeError: this code was run", trust_remote_code=True)


@pytest.mark.parametrize("missing", [["gguf"], ["gguf", "accelerate"]])
def test_gguf_without_its_packages_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else object())
    named = " and ".join(missing)
    message = rf"small\.gguf needs {named}: run `pip install 'modeldiff\[gguf\]'`"
    _refused(tmp_path / "small.gguf", MachineError, message)
