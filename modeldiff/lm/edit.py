"""Change the residual stream along whole sequences while they are continued: add a direction to each sequence, with a
strength for each of its tokens, or remove features wherever the stream itself shows them.

Shapes: B sequences of a batch, T tokens of a prompt, G features of a sequence, D width of the model's residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from modeldiff.errors import InputError
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import changed


@contextmanager
def add_along(
    lm: LanguageModel, layer: int, directions_BD: Tensor, along: Sequence[Tensor], after_B: Tensor
) -> Iterator[None]:
    """While the context is open, one batch of prompts is continued with directions added after block `layer`.

    Open it around one call of `continue_tokens` whose batch_size is B, or around one pass over the prompts, padded on
    the left. With and without a cache of keys and values the result is the same. Otherwise as `residual.changed`.

    Args:
        directions_BD: (B, D), any float dtype and device, in the model's own units.
        along: for each sequence (T,): how much of its direction is added at each token of its prompt.
        after_B: (B,): how much at every token that is written.

    Raises:
        InputError: a layer out of range, shapes that do not fit, values that are not finite, or (in the pass) other
            sequences than one batch of prompts of these lengths.
    """
    rows = len(along)
    if not rows or directions_BD.shape != (rows, lm.width) or after_B.shape != (rows,):
        raise InputError(
            f"adding along {rows} sequences in model {lm.name} needs as many directions of width {lm.width} and "
            f"strengths, but they have shapes {tuple(directions_BD.shape)} and {tuple(after_B.shape)}"
        )
    longest = max(len(one) for one in along)
    strength_BT = torch.zeros(rows, longest)
    for row_T, one in zip(strength_BT, along, strict=True):
        row_T[longest - len(one) :] = one
    if not all(bool(torch.isfinite(one).all()) for one in (directions_BD, strength_BT, after_B)):
        raise InputError(f"what is to be added along the sequences of model {lm.name} is not all finite")
    directions_BD = directions_BD.detach().to(lm.device, torch.float32)
    strength_BT = strength_BT.to(lm.device)
    after_BT = after_B.detach().to(lm.device, torch.float32)[:, None]
    calls = 0

    def add(hidden_BTD: Tensor) -> Tensor:
        nonlocal calls
        now_BT = _strengths((hidden_BTD.shape[0], hidden_BTD.shape[1]), strength_BT, after_BT, calls)
        calls += 1
        return hidden_BTD + now_BT[:, :, None] * directions_BD[:, None]

    with changed(lm, layer, add):
        yield


@dataclass(frozen=True)
class Shown:
    """Features as a model's residual stream shows them: f = x encoder + bias where above the threshold, else 0."""

    encoder_GD: Tensor
    """In the model's own units, float32; likewise `decoder_GD`, what an activation of 1 contributes."""
    bias_G: Tensor
    threshold_G: Tensor
    decoder_GD: Tensor


@contextmanager
def take_off(lm: LanguageModel, layer: int, shown: Sequence[Shown]) -> Iterator[None]:
    """While the context is open, what features contribute to the residual stream after block `layer` is subtracted at
    every token, written ones too.

    Args:
        shown: for each sequence of the batch.

    Raises:
        InputError: a layer out of range, or (in the pass) another number of sequences.
    """

    def stacked(parts: Sequence[Tensor], value: float = 0.0) -> Tensor:
        # Sequences with fewer features get some that are never active.
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value).to(lm.device)

    encoder_BGD, decoder_BGD = (stacked([getattr(one, k) for one in shown]) for k in ("encoder_GD", "decoder_GD"))
    bias_BG = stacked([one.bias_G for one in shown])
    threshold_BG = stacked([one.threshold_G for one in shown], float("inf"))

    def subtract(hidden_BTD: Tensor) -> Tensor:
        if len(hidden_BTD) != len(shown):
            raise InputError(f"features of {len(shown)} sequences were given for {len(hidden_BTD)}")
        pre_BTG = torch.einsum("btd,bgd->btg", hidden_BTD.float(), encoder_BGD) + bias_BG[:, None]
        f_BTG = torch.where(pre_BTG > threshold_BG[:, None], pre_BTG, 0.0)
        return hidden_BTD - torch.einsum("btg,bgd->btd", f_BTG, decoder_BGD)

    with changed(lm, layer, subtract):
        yield


def _strengths(shape: tuple[int, int], strength_BT: Tensor, after_BT: Tensor, calls: int) -> Tensor:
    """What belongs to the tokens of a pass: the prompts; then each new token alone, or everything up to it."""
    rows, longest = strength_BT.shape
    if shape == (rows, longest) and not calls:
        return strength_BT
    if shape == (rows, 1) and calls:
        return after_BT
    if shape == (rows, longest + calls) and calls:
        return torch.cat([strength_BT, after_BT.expand(-1, calls)], dim=1)
    raise InputError(
        f"strengths were given for one batch of {rows} prompts of {longest} tokens, but pass {calls + 1} has "
        f"{shape[0]} sequences of {shape[1]} tokens"
    )
