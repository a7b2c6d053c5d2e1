"""Replace single positions of the residual stream after a block, to see what the model makes of other values there.

Shapes: B batch, T tokens, R replaced positions, D width of the model's residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modeldiff.errors import InputError
from modeldiff.lm.blocks import hidden_of
from modeldiff.lm.model import LanguageModel


@contextmanager
def replace_in_residual(
    lm: LanguageModel, layer: int, sequence_R: Tensor, position_R: Tensor, x_RD: Tensor
) -> Iterator[None]:
    """While the context is open, the residual stream after block `layer` is `x_RD` at the given positions.

    sequence_R, position_R: int64 (R,), which sequence of the batch and which of its tokens (padding is on the right);
    x_RD: any float dtype and device, in the model's own units, rounded once to the stream's dtype. What else stands
    in the stream is left as it is; R may be 0. Meant for passes over one batch, not for generation. The model itself
    is not changed and the hook is removed when the context closes, also on an error. Raises InputError for a layer out
    of range, shapes that do not fit, values that are not finite, or (in the pass) a position outside the batch.
    """
    lm.check_layer(layer)
    rows = len(sequence_R)
    if sequence_R.shape != (rows,) or position_R.shape != (rows,) or x_RD.shape != (rows, lm.width):
        raise InputError(
            f"replacing {rows} positions in model {lm.name} needs as many positions and values of shape "
            f"({rows}, {lm.width}), but they have {tuple(position_R.shape)} and {tuple(x_RD.shape)}"
        )
    if not torch.isfinite(x_RD).all():
        raise InputError(f"the values to put into model {lm.name} are not all finite")
    index = (sequence_R.to(lm.device), position_R.to(lm.device))
    needed = (int(sequence_R.max()) + 1, int(position_R.max()) + 1) if rows else (0, 0)
    values_RD = x_RD.detach().to(lm.device)

    def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden_BTD = hidden_of(output)
        if hidden_BTD.shape[0] < needed[0] or hidden_BTD.shape[1] < needed[1]:
            raise InputError(
                f"a batch of {hidden_BTD.shape[0]} sequences of {hidden_BTD.shape[1]} tokens has no position "
                f"({needed[0] - 1}, {needed[1] - 1}) to replace"
            )
        replaced_BTD = hidden_BTD.clone()
        replaced_BTD[index] = values_RD.to(hidden_BTD.dtype)
        return replaced_BTD if isinstance(output, Tensor) else (replaced_BTD, *output[1:])

    handle = lm.blocks[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
