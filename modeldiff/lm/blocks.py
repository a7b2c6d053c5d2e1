"""Find a model's decoder blocks by what flows through them, never by the model's name.

Shapes: B batch, T tokens, D width of the residual stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeldiff.errors import InputError

# Enough positions to tell (B, T, D) from (T, B, D) or (B * T, D).
_PROBE_TOKENS = 5


def find_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder blocks of a transformers causal LM, in order.

    They are the one ModuleList of `config.num_hidden_layers` members (of the text configuration, where there are
    several) through which the residual stream runs in a short pass: each member is called once, takes and gives
    (B, T, D) with D = `config.hidden_size`, and takes exactly what the one before gave.
    Raises InputError when no list, or more than one, does that.
    """
    config = model.config.get_text_config(decoder=True)
    n_layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if n_layers is None or width is None:
        raise InputError(
            f"the configuration of {type(model).__name__} has no num_hidden_layers and hidden_size: "
            "expected a transformer language model"
        )
    lists = {name: list(m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers}
    calls = _probe(model, [block for members in lists.values() for block in members])
    stacks = {name: members for name, members in lists.items() if _is_residual_stack(members, calls, width)}
    # A list inside a block of another stack (possible with a single layer) is a part of it.
    outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    if len(outer) != 1:
        found = f"{len(outer)} of them" if outer else f"none among {len(lists)} lists of that length"
        raise InputError(
            f"{type(model).__name__} is not supported: expected one list of {n_layers} blocks that hand on a residual "
            f"stream of width {width}, found {found}"
        )
    return stacks[outer[0]]


def probe_ids(model: PreTrainedModel, n_tokens: int = _PROBE_TOKENS) -> Tensor:
    """(1, T) token ids for a short pass: low in the vocabulary, where no place holders for images are."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    device = next(model.parameters()).device
    return ((3 + 7 * torch.arange(n_tokens, device=device)) % vocabulary).unsqueeze(0)


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a block gives: the tensor itself, or the first member of a tuple.

    Some architectures and releases of transformers give the one, some the other.
    """
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, Tensor):
        raise InputError(f"a block gave {type(hidden).__name__}: expected a tensor or a tuple that starts with one")
    return hidden


def _probe(model: PreTrainedModel, modules: list[nn.Module]) -> dict[nn.Module, list[tuple[Any, Any]]]:
    """Run a few tokens through the model; what each module took and gave, per call."""
    calls: dict[nn.Module, list[tuple[Any, Any]]] = {module: [] for module in modules}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        calls[module].append((given, output[0] if isinstance(output, (tuple, list)) and output else output))

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in calls]
    ids_BT = probe_ids(model)
    try:
        with torch.inference_mode():
            model.base_model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _is_residual_stack(members: list[nn.Module], calls: dict[nn.Module, list[tuple[Any, Any]]], width: int) -> bool:
    if any(len(calls[member]) != 1 for member in members):
        return False
    passed = [tensor for member in members for tensor in calls[member][0]]
    if any(not isinstance(x, Tensor) or x.shape != (1, _PROBE_TOKENS, width) for x in passed):
        return False
    # `is` first: not-a-number in an overflowing float16 pass is not equal to itself.
    handed_on = zip(passed[1:-1:2], passed[2::2], strict=True)
    return all(given is taken or torch.equal(given, taken) for given, taken in handed_on)
