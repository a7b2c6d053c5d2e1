"""Every architecture of a causal language model that transformers has, tiny and with random weights: captured, refused
in one line with the reason, or failed. `python -m tests.attack.architectures` prints the table of all; names of model
types after it choose some.

Captured means: a saved folder loads, and after every block that can be read the hook gives what the model goes on with.
Independent of how the package finds that out, two things are checked here on texts of different lengths, padded: what
is read of a text does not depend on the texts beside it, and put back in its place it changes no logit, while something
else in its place does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modeldiff.errors import ModeldiffError
from modeldiff.lm.batches import padded
from modeldiff.lm.load import LanguageModel, ModelRef, load_model, read_geometry
from modeldiff.lm.residual import changed, residual_after, verify_hook
from tests.attack.tiny_configs import tiny_config
from tests.tiny_models import tiny_tokenizer

ALL = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# More is a sign of a size that was not made small.
_MOST_VALUES = 5e6
_LENGTHS = (9, 4, 1, 6)


@dataclass(frozen=True)
class Outcome:
    model_type: str
    status: str
    """captured, refused or failed."""
    reason: str
    """Why it was refused or how it failed; of a captured one, the blocks that cannot be read."""
    seconds: float = 0.0


def attempt(model_type: str, folder: Path) -> Outcome:
    """Build it tiny, save it, and capture after each of its blocks."""
    started = time.monotonic()
    status, reason = _attempt(model_type, folder / model_type)
    return Outcome(model_type, status, reason, time.monotonic() - started)


def _attempt(model_type: str, folder: Path) -> tuple[str, str]:
    try:
        _save(model_type, folder)
    except Exception as error:  # whatever transformers raises for a configuration of its own
        return "refused", f"transformers cannot build it: {type(error).__name__}: {' '.join(str(error).split())}"
    try:
        geometry = read_geometry(ModelRef(str(folder)))
        lm = load_model(ModelRef(str(folder)), torch.device("cpu"), torch.float32)
        assert (geometry.n_layers, geometry.width) == (lm.n_layers, lm.width), "configuration and model disagree"
        wrong = {layer: reason for layer in range(lm.n_layers) if (reason := _unreadable(lm, layer))}
        longest = torch.full((1, lm.max_positions or 64), 5)
        residual_after(lm, 0, longest, torch.ones_like(longest))
    except ModeldiffError as error:
        return ("failed", "more than one line") if "\n" in str(error) else ("refused", str(error))
    except Exception as error:
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
    if len(wrong) == lm.n_layers:
        return "refused", wrong[0]
    return "captured", "; ".join(wrong.values())


def _save(model_type: str, folder: Path) -> None:
    config = tiny_config(model_type)
    with torch.device("meta"):
        values = sum(one.numel() for one in transformers.AutoModelForCausalLM.from_config(config).parameters())
    assert values < _MOST_VALUES, f"{values:,} weights: make its sizes small in tiny_configs.py"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    config.save_pretrained(folder)  # the whole one, where the model itself keeps that of its text part
    tiny_tokenizer().save_pretrained(folder)


def _unreadable(lm: LanguageModel, layer: int) -> str:
    """Why a block cannot be read, in the package's words. Raises AssertionError: it is read wrongly."""
    try:
        verify_hook(lm, layer)
    except ModeldiffError as error:
        return str(error)
    ids = [5 + 11 * torch.arange(length) % 200 for length in _LENGTHS]
    ids_BT, mask_BT = padded(ids)
    real_BT = mask_BT.bool()
    x_BTD = residual_after(lm, layer, ids_BT, mask_BT).clone()
    assert x_BTD.shape == (*ids_BT.shape, lm.width), "another shape"
    for row, ids_T in enumerate(ids):
        alone_TD = residual_after(lm, layer, ids_T[None], torch.ones_like(ids_T)[None])[0]
        _equal(x_BTD[row, : len(ids_T)], alone_TD, "a text is read otherwise beside others")
    with torch.inference_mode():
        plain_BTV = lm.logits(ids_BT, mask_BT)
        with changed(lm, layer, lambda _: x_BTD):
            _equal(lm.logits(ids_BT, mask_BT)[real_BT], plain_BTV[real_BT], "put back, it changes the logits")
        # Another direction and norm, for what comes next may normalise it; not a copy of one number, for that has none.
        other_BTD = x_BTD.flip(2) + torch.linspace(-1, 1, lm.width)
        with changed(lm, layer, lambda _: other_BTD):
            moved_BTV = lm.logits(ids_BT, mask_BT)
    assert not torch.equal(moved_BTV[real_BT], plain_BTV[real_BT]), "the logits do not depend on it"
    return ""


def _equal(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    scale = float(expected[expected.isfinite()].abs().max())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * scale, equal_nan=True), what


def main(names: Sequence[str]) -> int:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # such small matrices are only slowed down by more
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for model_type in names or ALL:
            outcome = attempt(model_type, Path(folder))
            counts[outcome.status] += 1
            line = f"{model_type:28} {outcome.status:8} {outcome.seconds:5.1f} s  {outcome.reason}"
            print(line.rstrip(), flush=True)  # noqa: T201 - the table is what this is for
    kinds = ", ".join(f"{counts[status]} {status}" for status in ("captured", "refused", "failed"))
    print(f"{kinds} of {counts.total()} architectures of transformers {transformers.__version__}")  # noqa: T201
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
