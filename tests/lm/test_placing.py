"""Where weights lie: models spread over devices, models too large for one, quantised models."""

import importlib.util
import json
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers

from modeldiff.errors import InputError, MachineError, ModeldiffError
from modeldiff.lm.generate import generate
from modeldiff.lm.load import LanguageModel, ModelRef, load_model
from modeldiff.lm.residual import add_to_residual, residual_after, verify_hook
from tests.tiny_models import tiny_tokenizer

CPU = torch.device("cpu")
IDS_BT = torch.arange(5, 15).reshape(2, 5)


def _read(lm: LanguageModel) -> list[Any]:
    with add_to_residual(lm, 0, torch.linspace(-1, 1, lm.width)):
        said = generate(lm, ["The quick"], max_new_tokens=5)
    return [said, *(residual_after(lm, layer, IDS_BT, torch.ones_like(IDS_BT)).tolist() for layer in range(3))]


def test_weights_that_are_fetched_when_they_are_needed_give_the_same(llama: Path) -> None:
    expected = _read(load_model(ModelRef(str(llama)), CPU, torch.float32))
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model = accelerate.cpu_offload(model, execution_device=CPU)
    assert {one.device.type for one in model.parameters()} == {"meta"}
    lm = LanguageModel(model, transformers.AutoTokenizer.from_pretrained(llama), ModelRef(str(llama)))
    verify_hook(lm, 1)
    assert lm.device == CPU
    assert _read(lm) == expected


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where models were to be placed. One that is to fit on a single device does not; all stay on the CPU."""
    places: list[Any] = []
    partly: list[weakref.ref[torch.nn.Linear]] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(*args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        places.append(device_map)
        assert not any(one() for one in partly), "what was loaded so far is freed before the next attempt"
        if isinstance(device_map, dict):
            weights = torch.nn.Linear(2, 2)
            partly.append(weakref.ref(weights))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return places


def test_a_model_that_does_not_fit_on_a_gpu_is_spread(
    llama: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = torch.device("cuda", 0)
    assert load_model(ModelRef(str(llama)), gpu, torch.float32).n_layers == 3
    assert asked == [{"": gpu}, "auto"]
    assert "model llama does not fit on cuda:0: it is spread over all GPUs" in capsys.readouterr().err


def test_of_several_processes_none_takes_the_gpus_of_the_others(
    llama: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="model llama does not fit: try --dtype bfloat16"):
        load_model(ModelRef(str(llama)), torch.device("cuda", 1), torch.float32)
    assert asked == [{"": torch.device("cuda", 1)}]


@pytest.mark.parametrize(
    ("quantization", "error", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, MachineError, "needs a package .*bitsandbytes"),
        ({"quant_method": "home_made"}, InputError, "by a method that transformers does not know: 'home_made'"),
    ],
)
def test_a_quantised_model_that_cannot_be_read_says_why(
    llama: Path,
    quantization: dict[str, Any],
    error: type[ModeldiffError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *at: None if name == "bitsandbytes" else found(name, *at)
    )
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(error, match=message) as caught:
        load_model(ModelRef(str(llama)), CPU, torch.float32)
    assert "\n" not in str(caught.value)


def _private_bytes() -> int:
    """What this process holds by itself; pages of files that are mapped are shared with whoever reads them."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux tells it")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_the_weights_is_made_on_the_way(tmp_path: Path, dtype: torch.dtype) -> None:
    """In the dtype of the files they stay in these; otherwise each tensor is converted by itself."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 320}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=8)
    with torch.random.fork_rng([]):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    made.save_pretrained(tmp_path, max_shard_size="20MB")
    tiny_tokenizer().save_pretrained(tmp_path)
    ref = ModelRef(str(tmp_path))
    load_model(ref, CPU, dtype)  # what is imported at the first time is none of the weights
    before = peak = _private_bytes()
    loading = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not loading.is_set():
            peak = max(peak, _private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    lm = load_model(ref, CPU, dtype)
    loading.set()
    watcher.join()
    weights = sum(one.nbytes for one in lm.model.parameters())
    largest = max(one.nbytes for one in made.parameters())
    held = 0 if dtype == torch.float32 else weights
    assert weights > 8 * largest
    assert peak - before < held + 4 * largest
    for (name, expected), loaded in zip(made.named_parameters(), lm.model.parameters(), strict=True):
        assert torch.equal(loaded, expected.to(dtype)), name
    if dtype == torch.float32:
        ids = {"input_ids": IDS_BT, "attention_mask": torch.ones_like(IDS_BT)}
        assert torch.equal(lm.logits(*ids.values()), made(**ids).logits)
