"""PEFT adapters: what they and their base compute together, what identifies them, and what is refused."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modeldiff.errors import DamagedError, InputError, MachineError, ModeldiffError
from modeldiff.lm.load import LanguageModel, ModelRef, load_model, load_tokenizer, read_geometry
from modeldiff.lm.ref import locate, model_identity
from tests.lm.conftest import COMMIT

CPU = torch.device("cpu")
IDS_BT = torch.tensor([[5, 6, 7, 8, 250]])


def _load(name: Path | str) -> LanguageModel:
    return load_model(ModelRef(str(name)), CPU, torch.float32)


def _logits(lm: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return lm.logits(IDS_BT, torch.ones_like(IDS_BT))


def _tune(base: Path | str, folder: Path, rows: int | None = None, **options: Any) -> torch.Tensor:
    """Save an adapter that does something, and give the logits that peft itself computes with it. `rows`: first bring
    the embeddings to that many."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False, **options)
    tuned = peft.get_peft_model(model, config).eval()
    tuned.save_pretrained(folder)
    with torch.inference_mode():
        return tuned(input_ids=IDS_BT).logits


def _change_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    """An adapter of a model, both of which a test may change."""
    _tune(llama, tmp_path / "tuned")
    return tmp_path / "tuned"


def test_an_adapter_is_its_base_model_with_the_weights_added(llama: Path, tmp_path: Path) -> None:
    expected_BTV = _tune(llama, tmp_path / "tuned", use_dora=True)
    lm = _load(tmp_path / "tuned")
    torch.testing.assert_close(_logits(lm), expected_BTV)
    assert not torch.allclose(_logits(lm), _logits(_load(llama)), atol=1e-2)
    assert (lm.name, lm.n_layers, read_geometry(lm.ref).width) == ("tuned", 3, 32)
    assert lm.tokenizer.get_vocab() == load_tokenizer(ModelRef(str(llama))).get_vocab()


def test_an_adapter_may_bring_a_larger_vocabulary(llama: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens(["<think>"])
    expected_BTV = _tune(llama, tmp_path / "tuned", len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "tuned")
    lm = _load(tmp_path / "tuned")
    torch.testing.assert_close(_logits(lm), expected_BTV)
    assert read_geometry(lm.ref).vocabulary == lm.vocabulary == len(lm.tokenizer) == len(tokenizer)


def test_its_base_is_found_beside_it_too(adapter: Path) -> None:
    _change_config(adapter, base_model_name_or_path="../llama")
    assert Path(locate(ModelRef(str(adapter))).source).resolve() == (adapter.parent / "llama").resolve()


def test_it_is_identified_by_its_files_and_those_of_its_base(adapter: Path, llama: Path) -> None:
    seen = [model_identity(ModelRef(str(adapter)))]
    assert seen[0]["name"] == "tuned"
    for file in (adapter / "adapter_model.safetensors", llama / "model.safetensors", llama / "tokenizer.json"):
        file.write_bytes(file.read_bytes() + b" ")
        seen.append(model_identity(ModelRef(str(adapter))))
    assert len({one["digest"] for one in seen}) == 4


@pytest.mark.usefixtures("small_on_the_hub")
def test_an_adapter_and_its_base_on_the_hub(adapter: Path, tmp_path: Path) -> None:
    _change_config(adapter, base_model_name_or_path="org/small")
    repo = tmp_path / "cache" / "models--org--tuned"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("f" * 40)
    shutil.copytree(adapter, repo / "snapshots" / ("f" * 40))
    location = locate(ModelRef("org/tuned"))
    assert (location.source, location.revision) == ("org/small", COMMIT)
    lm = _load("org/tuned")
    assert lm.name == "org/tuned"
    torch.testing.assert_close(_logits(lm), _logits(_load(adapter)))
    assert model_identity(ModelRef("org/tuned"))["digest"] != model_identity(ModelRef("org/small"))["commit"]


def _without_some(adapter: Path, _llama: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    del weights[min(weights)]
    save_file(weights, adapter / "adapter_model.safetensors")


def _with_a_model(adapter: Path, llama: Path) -> None:
    shutil.copytree(llama, adapter, dirs_exist_ok=True)


def _pickled(adapter: Path, _llama: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _of_another_adapter(adapter: Path, llama: Path) -> None:
    _tune(llama, adapter.parent / "first")
    _change_config(adapter, base_model_name_or_path=str(adapter.parent / "first"))


def _cut_off(adapter: Path, _llama: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


CHANGES: list[tuple[Callable[[Path, Path], None], type[ModeldiffError], str]] = [
    (lambda a, _: _change_config(a, base_model_name_or_path=None), InputError, "names no base model"),
    (
        lambda a, _: _change_config(a, base_model_name_or_path="/no/where"),
        InputError,
        "base model .*tuned cannot be fo",
    ),
    (lambda a, _: _change_config(a, megatron_config={"a": 1}, megatron_core="antigravity"), InputError, "for Megatron"),
    (lambda a, _: _change_config(a, peft_type="PROMPT_TUNING"), InputError, "is a learned prompt"),
    (lambda a, _: _change_config(a, peft_type="FUTURE"), InputError, "cannot be loaded: KeyError: 'FUTURE'"),
    (lambda a, _: _change_config(a, r=8), DamagedError, "do not fit its config"),
    (_without_some, DamagedError, "do not fit its base model: 1 are missing or have no place, such as base_model"),
    (_cut_off, DamagedError, r"adapter_model\.safetensors is damaged"),
    (_with_a_model, InputError, "holds a model and an adapter: move one of them"),
    (_pickled, InputError, r"has no adapter_model\.safetensors: pickled weights are not read"),
    (_of_another_adapter, InputError, "is an adapter itself: merge and save that first"),
]


@pytest.mark.parametrize(("change", "error", "message"), CHANGES)
def test_an_adapter_that_cannot_be_used(
    adapter: Path, llama: Path, change: Callable[[Path, Path], None], error: type[ModeldiffError], message: str
) -> None:
    change(adapter, llama)
    with pytest.raises(error, match=message) as caught:
        _load(adapter)
    assert "\n" not in str(caught.value)


def test_without_peft_its_extra_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    with pytest.raises(MachineError, match=r"tuned is an adapter, .*: run `pip install 'modeldiff\[peft\]'`"):
        read_geometry(ModelRef(str(adapter)))
