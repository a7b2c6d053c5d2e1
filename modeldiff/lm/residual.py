"""Read the residual stream after a block, and add a vector to it.

Layer index: `layer` L is the residual stream after block L, counted from 0, that is `hidden_states[L + 1]`.
Shapes: B batch, T tokens, D width of the model's residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modeldiff.errors import InputError, MachineError
from modeldiff.lm.blocks import hidden_of, probe_ids
from modeldiff.lm.model import LanguageModel


class _LayerReached(Exception):  # noqa: N818 - a signal that ends a pass early, not an error
    """Raised by the hook once the wanted tensor is there."""


def residual_after(lm: LanguageModel, layer: int, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The residual stream after block `layer`, x_BTD, in the model's dtype and on its device.

    ids_BT: int64 token ids, padded on the right with any valid id; mask_BT: 1 at tokens, 0 at padding (rows of x at
    padding have no meaning). Blocks after `layer` and the logits are not computed. The result is an inference
    tensor: clone it before using it in autograd. Inside `add_to_residual` on the same layer the vector is included.
    Raises InputError for a layer out of range or a sequence longer than the model's positions.
    """
    lm.check_layer(layer)
    lm.check_length(ids_BT.shape[1])
    seen: list[Tensor] = []

    def take(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(hidden_of(output))
        raise _LayerReached

    handle = lm.blocks[layer].register_forward_hook(take)
    try:
        with torch.inference_mode():
            lm.body(input_ids=ids_BT.to(lm.device), attention_mask=mask_BT.to(lm.device), use_cache=False)
    except _LayerReached:
        pass
    finally:
        handle.remove()
    if not seen:
        raise InputError(f"block {layer} of model {lm.name} was not run in a forward pass: it cannot be read")
    return seen[0]


@contextmanager
def add_to_residual(lm: LanguageModel, layer: int, vector_D: Tensor) -> Iterator[None]:
    """While the context is open, add `vector_D` to the residual stream after block `layer` at every position.

    vector_D: (D,), any float dtype and device, in the model's own units; the sum is rounded once to the stream's dtype.
    The model itself is not changed and the hook is removed when the context closes, also on an error. Contexts may
    be nested; their vectors add up. Raises InputError for a layer out of range or a vector that does not fit.
    """
    if vector_D.shape != (lm.width,):
        raise InputError(
            f"a steering vector for model {lm.name} must have shape ({lm.width},), but has {tuple(vector_D.shape)}"
        )
    with _added(lm, layer, vector_D):
        yield


@contextmanager
def add_each_to_residual(lm: LanguageModel, layer: int, vector_BD: Tensor) -> Iterator[None]:
    """As `add_to_residual` with a vector (B, D) for each sequence; every pass must be over B sequences.

    Raises InputError as that, and in a pass over another number of sequences.
    """
    if vector_BD.dim() != 2 or vector_BD.shape[1] != lm.width:
        raise InputError(
            f"steering vectors for model {lm.name} must have shape (sequences, {lm.width}), but have "
            f"{tuple(vector_BD.shape)}"
        )
    with _added(lm, layer, vector_BD[:, None]):
        yield


@contextmanager
def _added(lm: LanguageModel, layer: int, vector: Tensor) -> Iterator[None]:
    """Add a vector (D,), or (B, 1, D) with one for each sequence."""
    lm.check_layer(layer)
    if not torch.isfinite(vector).all():
        raise InputError(f"the steering vector for model {lm.name} holds values that are not finite")
    addend = vector.detach().to(lm.device, torch.float32)

    def add(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden_BTD = hidden_of(output)
        if addend.dim() == 3 and len(addend) != len(hidden_BTD):
            raise InputError(f"{len(addend)} steering vectors were given for a batch of {len(hidden_BTD)} sequences")
        steered_BTD = (hidden_BTD + addend).to(hidden_BTD.dtype)
        return steered_BTD if isinstance(output, Tensor) else (steered_BTD, *output[1:])

    handle = lm.blocks[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def verify_hook(lm: LanguageModel, layer: int) -> None:
    """Check in a short pass that the hook on block `layer` sees `hidden_states[layer + 1]`.

    transformers gives the last of the hidden states after the final norm; for the last block the check is therefore
    that some module behind the blocks takes the hooked tensor and gives `hidden_states[-1]`.
    Raises InputError if the architecture hands out something else, or if stopping early changes the tensor.
    """
    lm.check_layer(layer)
    ids_BT = probe_ids(lm.model)
    mask_BT = torch.ones_like(ids_BT)
    early_BTD = residual_after(lm, layer, ids_BT, mask_BT)
    hooked_BTD, states, behind = _full_pass(lm, layer, ids_BT, mask_BT)
    if len(states) != lm.n_layers + 1:
        raise InputError(
            f"model {lm.name} gives {len(states)} hidden states: expected {lm.n_layers + 1}, one more than blocks"
        )
    if not torch.isfinite(hooked_BTD).all():
        raise MachineError(
            f"block {layer} of model {lm.name} gives values that are not finite in {lm.dtype}: "
            "use --dtype float32 or bfloat16, or check the weights"
        )
    if not _close(hooked_BTD, early_BTD):
        raise InputError(f"block {layer} of model {lm.name} gives something else when the pass stops there")
    state_BTD = states[layer + 1]
    if _same(hooked_BTD, state_BTD):
        return
    is_last = layer == lm.n_layers - 1
    if is_last and any(_same(hooked_BTD, taken) and _same(given, state_BTD) for taken, given in behind):
        return
    raise InputError(
        f"the output of block {layer} of model {lm.name} is not its hidden_states[{layer + 1}]: "
        "this architecture cannot be read at that layer"
    )


def _full_pass(
    lm: LanguageModel, layer: int, ids_BT: Tensor, mask_BT: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], list[tuple[Tensor, Tensor]]]:
    """One pass to the end: the hooked tensor, all hidden states, (taken, given) of the modules outside the blocks."""
    hooked: list[Tensor] = []
    behind: list[tuple[Tensor, Tensor]] = []
    in_blocks = {module for block in lm.blocks for module in block.modules()}

    def take(_module: nn.Module, _args: Any, output: Any) -> None:
        # A copy, so that a later change in place would show.
        hooked.append(hidden_of(output).clone())

    def note(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            behind.append((args[0], output))

    handles = [lm.blocks[layer].register_forward_hook(take)]
    handles += [m.register_forward_hook(note) for m in lm.body.modules() if m not in in_blocks]
    try:
        with torch.inference_mode():
            output = lm.body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    return hooked[0], output.hidden_states or (), behind


def _close(one_BTD: Tensor, other_BTD: Tensor) -> bool:
    # Two passes of the same shape differ at most by the order of sums in a device's atomic additions, which is less
    # than one step of bfloat16 (2^-8) of a token's norm.
    gap_BT = torch.linalg.vector_norm((one_BTD - other_BTD).float(), dim=-1)
    return bool((gap_BT <= 2**-8 * torch.linalg.vector_norm(one_BTD.float(), dim=-1)).all())


def _same(one_BTD: Tensor, other_BTD: Tensor) -> bool:
    return one_BTD is other_BTD or torch.equal(one_BTD, other_BTD)
