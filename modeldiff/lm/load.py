"""Load a causal language model, its tokenizer or its configuration alone: from the hub, a local folder or a GGUF file.

Only safetensors and GGUF weights are read, never pickled ones. What goes wrong becomes a one-line error.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from modeldiff.console import muted, say
from modeldiff.errors import DamagedError, InputError, MachineError, ModeldiffError
from modeldiff.lm.adapter import check_adapter, merged, vocabulary_with
from modeldiff.lm.geometry import Geometry
from modeldiff.lm.model import LanguageModel, probe_ids
from modeldiff.lm.ref import Location, ModelRef, content_files, locate, model_identity

__all__ = ["LanguageModel", "ModelRef", "load_model", "load_tokenizer", "model_identity", "quiet", "read_geometry"]

# An adapter with one of these has a tokenizer of its own.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """No warnings of transformers inside, and no progress bars unless `bars` (nor where the console is muted): this
    package checks for itself what they would say."""
    log = transformers.logging
    verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if not bars or muted():
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bars:
            log.enable_progress_bar()


def read_geometry(ref: ModelRef, name: str | None = None) -> Geometry:
    """The geometry of a model, called `name` in messages if not as usual. Raises as `load_model`; no weights are
    read."""
    location = locate(ref)
    with _one_line_errors(ref, location, "configuration of model"):
        config = transformers.AutoConfig.from_pretrained(**_from_pretrained_arguments(ref, location))
        geometry = Geometry.of(config, name or ref.short_name)
        if location.adapter:
            check_adapter(location.adapter)
            width = geometry.width // geometry.streams
            geometry.vocabulary = vocabulary_with(location.adapter, geometry.vocabulary, width)
    return geometry


def load_tokenizer(ref: ModelRef) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a model, the fast one where there is one. Raises as `load_model`."""
    location = locate(ref)
    if location.adapter and any((location.adapter / name).is_file() for name in _TOKENIZER_FILES):
        location = Location(str(location.adapter), local=True)
    if location.local and not location.gguf_file:
        _check_files(location.files)
    with _one_line_errors(ref, location, "tokenizer"), quiet(bars=not location.local):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_from_pretrained_arguments(ref, location))
    # Without its files, some classes of tokenizer are made empty, and no error is raised.
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise InputError(
            f"model {ref.short_name} comes without tokenizer files: save its tokenizer beside it (save_pretrained)"
        )
    return tokenizer


def load_model(ref: ModelRef, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """The model and its tokenizer on `device`, weights in `dtype`, frozen and in evaluation mode.

    GGUF weights are unpacked into plain ones. Raises InputError for what is not a causal language model or cannot be
    found, DamagedError for truncated or missing weights (naming the file), MachineError for missing packages or memory.
    """
    if device.type == "cuda":
        _forget()
    location = locate(ref)
    tokenizer = load_tokenizer(ref)
    arguments = _from_pretrained_arguments(ref, location)
    if location.adapter:
        _check_files(content_files(location.adapter))
    with _one_line_errors(ref, location, "model"), quiet(bars=not location.local):
        if location.adapter:
            check_adapter(location.adapter)
        if location.gguf_file:
            from transformers import GgufConfig  # newer than the oldest release that serves otherwise

            arguments["quantization_config"] = GgufConfig(dequantize=True)
        else:
            arguments["use_safetensors"] = True
        model, report = _placed(arguments, ref, device, dtype)
        if location.adapter:
            model = merged(model, location.adapter)
    if missing := sorted(report["missing_keys"]):
        raise DamagedError(
            f"the weights of model {ref.short_name} lack {len(missing)} tensors that its configuration asks for, "
            f"such as {missing[0]}: it is incomplete, or not a causal language model"
        )
    with _one_line_errors(ref, location, "model"):
        lm = LanguageModel(model, tokenizer, ref)
        _check_causal(lm)
    return lm


def _placed(
    arguments: dict[str, Any], ref: ModelRef, device: torch.device, dtype: torch.dtype
) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    """(the model on `device`, what transformers reports of its loading). With accelerate, without which transformers
    refuses to place weights, each tensor goes to a GPU as it is read; a quantised model goes there at once, for some
    cannot be moved, and one that does not fit on a GPU is spread over all of them and the main memory, unless other
    processes use these. Without it, weights in the dtype of their files stay in these, which processes share, until
    they are moved; those in another are converted in the main memory."""

    def load(**placing: Any) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
        loaded: tuple[transformers.PreTrainedModel, dict[str, Any]]
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            **arguments, **placing, dtype=dtype, output_loading_info=True
        )
        return loaded

    quantised = _is_quantised(arguments, ref.short_name)
    if importlib.util.find_spec("accelerate") is None or (device.type == "cpu" and not quantised):
        model, report = load()
        return model.to(device), report
    try:
        return load(device_map={"": device})
    except torch.OutOfMemoryError:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise
    # Only here, where the error is gone, which holds what was loaded so far.
    say(f"model {ref.short_name} does not fit on {device}: it is spread over all GPUs and the main memory")
    _forget()
    return load(device_map="auto")


def _forget() -> None:
    """Free the memory of GPUs that nobody uses: of models, too, that accelerate has spread, which hold themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_quantised(arguments: dict[str, Any], name: str) -> bool:
    """Raises InputError for a method that transformers does not know: it would take the numbers as they stand."""
    if "gguf_file" in arguments:
        return False
    found = getattr(transformers.AutoConfig.from_pretrained(**arguments), "quantization_config", None)
    if found is None:
        return False
    from transformers.quantizers import AutoHfQuantizer  # takes a second or more to import

    if not AutoHfQuantizer.supports_quant_method(found):
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise InputError(f"model {name} is quantised by a method that transformers does not know: {method!r}")
    return True


def _from_pretrained_arguments(ref: ModelRef, location: Location) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "pretrained_model_name_or_path": location.source,
        "revision": location.revision,
        # False, not None: None makes transformers ask on the terminal.
        "trust_remote_code": ref.trust_remote_code,
        "local_files_only": location.local,
    }
    if location.gguf_file:
        arguments["gguf_file"] = location.gguf_file
        missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
        if missing:
            raise MachineError(
                f"reading {location.gguf_file} needs {' and '.join(missing)}: run `pip install 'modeldiff[gguf]'`"
            )
    return arguments


def _check_files(files: list[Path]) -> None:
    """Raise DamagedError for JSON that is cut off, and for weights of another length than their header says."""
    for file in files:
        try:
            if file.suffix == ".json":
                json.loads(file.read_bytes())
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedError(f"{file} is damaged ({_brief(error)}): copy the model again") from error


def _check_causal(lm: LanguageModel) -> None:
    """Raise InputError if what comes later changes what stands before: then the model is an encoder."""
    ids_BT = probe_ids(lm.model).repeat(2, 1)
    ids_BT[1, -1] = ids_BT[0, 0]
    with torch.inference_mode():
        before_BTV = lm.logits(ids_BT, torch.ones_like(ids_BT)).float()[:, :-1]
    finite = before_BTV[before_BTV.isfinite()]
    if before_BTV.isnan().any() or not len(finite):
        return  # the capture names the text at which it happens
    # Equal but for rounding, which depends on the device; attention to a later token changes far more.
    if not torch.allclose(before_BTV[0], before_BTV[1], rtol=1e-2, atol=1e-2 * float(finite.abs().max())):
        raise InputError(f"model {lm.name} is not a causal language model: its tokens see the tokens after them")


@contextmanager
def _one_line_errors(ref: ModelRef, location: Location, what: str) -> Iterator[None]:
    """Turn whatever `from_pretrained` raises into one line; the cause stays attached for a debugger. What transformers
    and peft only warn of is checked, or no user's business."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except ModeldiffError:
        raise
    except Exception as error:
        # Everything: transformers, tokenizers and gguf raise errors of many kinds for a file they cannot read.
        raise _explained(error, ref.short_name, location, what) from error


def _explained(error: Exception, name: str, location: Location, what: str) -> ModeldiffError:
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        spread = "" if importlib.util.find_spec("accelerate") else " `pip install accelerate`, which spreads it,"
        return MachineError(f"{what} {name} does not fit: try{spread} --dtype bfloat16 or --device cpu")
    if isinstance(error, ImportError):
        return MachineError(f"{what} {name} needs a package that is missing: {_brief(error)}")
    if location.gguf_file:
        return DamagedError(f"{name} is damaged or not a GGUF model ({_brief(error)}): copy it again")
    if isinstance(error, SafetensorError):
        return DamagedError(f"the weights of {name} are damaged ({_brief(error)}): fetch them again")
    if "size mismatch" in text or "ignore_mismatched_sizes" in text:
        return DamagedError(f"the weights of {name} do not fit its config.json: fetch the model again")
    if "trust_remote_code" in text:
        return InputError(f"{what} {name} brings its own Python code: read it, then run it with --trust-remote-code")
    if "does not recognize this architecture" in text:
        return InputError(
            f"transformers {transformers.__version__} does not know the architecture of {name}: "
            "run `pip install -U transformers`"
        )
    if "for this kind of AutoModel" in text:
        return InputError(f"model {name} is not a causal language model")
    return InputError(f"{what} {name} cannot be loaded: {_brief(error)}")


def _brief(error: Exception) -> str:
    """The first two lines of an error's text as one, after its kind if that is not the usual one."""
    lines = [line.strip().rstrip(".:") for line in str(error).strip().splitlines() if line.strip()]
    kind = [] if isinstance(error, (OSError, ValueError)) else [type(error).__name__]
    return ": ".join(kind + lines[:2])
