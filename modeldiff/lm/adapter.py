"""A PEFT adapter, such as LoRA: what fine-tuning added to a base model, saved by itself. It is merged into the base.

What the adapter's files say is data: nothing in them makes this package, or peft, import code.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import transformers
from safetensors import safe_open

from modeldiff.errors import DamagedError, InputError, MachineError
from modeldiff.workspace.files import read_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base_of(folder: Path) -> tuple[str, str | None]:
    """(name of the base model, its revision on the hub) as an adapter's folder says. Raises InputError: it does not;
    DamagedError: its configuration cannot be read."""
    config = read_json(folder / ADAPTER_CONFIG)
    base, revision = (config.get(key) for key in ("base_model_name_or_path", "revision"))
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise InputError(f"adapter {folder} names no base model: write it as base_model_name_or_path in its config")
    beside = folder / base
    return (str(beside) if not Path(base).exists() and beside.exists() else base), revision


def vocabulary_with(folder: Path, vocabulary: int, width: int) -> int:
    """The number of tokens with embeddings: an adapter for a model whose embeddings were resized brings its own."""
    rows = [vocabulary]
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        # Embeddings and what makes logits are the matrices as wide as the model outside the numbered blocks.
        for key in (key for key in weights.keys() if not re.search(r"\.\d+\.|lora_", key)):  # noqa: SIM118 - a file
            shape = weights.get_slice(key).get_shape()
            rows += [shape[0]] if len(shape) == 2 and shape[1] == width else []
    return max(rows)


def check_adapter(folder: Path) -> None:
    """Raise what is wrong with an adapter before its base model is loaded: MachineError without peft; InputError for
    one that cannot be merged, brings pickled weights, or names code to import."""
    if importlib.util.find_spec("peft") is None:
        raise MachineError(f"{folder.name} is an adapter, and that needs peft: run `pip install 'modeldiff[peft]'`")
    from peft import PeftConfig

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"adapter {folder} has no {ADAPTER_WEIGHTS}: pickled weights are not read; save it again")
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        raise InputError(f"adapter {folder} is a learned prompt ({config.peft_type}): only weights can be merged")
    # peft would import the module that the configuration names.
    if getattr(config, "megatron_config", None):
        raise InputError(f"adapter {folder} is for Megatron: save it for transformers")


def merged(model: transformers.PreTrainedModel, folder: Path) -> transformers.PreTrainedModel:
    """The model with an adapter merged into its weights; the model given is used up. Raises DamagedError: the adapter's
    weights are not those that its configuration describes for this model."""
    from peft import PeftConfig, PeftModel

    text = model.config.get_text_config(decoder=True)
    if (rows := vocabulary_with(folder, text.vocab_size, text.hidden_size)) > text.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)
    tuned = PeftModel(model, PeftConfig.from_pretrained(str(folder)))
    report = tuned.load_adapter(str(folder), "default")
    if wrong := sorted((*report.missing_keys, *report.unexpected_keys)):
        raise DamagedError(
            f"the weights of adapter {folder} do not fit its base model: {len(wrong)} are missing or have no place, "
            f"such as {wrong[0]}"
        )
    found: transformers.PreTrainedModel = tuned.merge_and_unload()
    return found
