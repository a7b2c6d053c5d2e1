"""Gradients of a model's own predictions: what a small change of the residual stream does to them, to second order.

A score is the gradient, by the residual stream after a block, of the log-probabilities of next tokens that were drawn
from the model's own distribution. Its mean is zero and its covariance the Fisher information: for a small change v of
the stream, KL(unchanged || changed), summed over the positions, is half the expected square of score . v.

Shapes: S draws, B batch, T tokens, D width of the residual stream, V vocabulary, P = B * T positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modeldiff.errors import InputError
from modeldiff.lm.batches import chunks
from modeldiff.lm.blocks import hidden_of
from modeldiff.lm.model import LanguageModel


def sampled_scores(lm: LanguageModel, layer: int, ids_BT: Tensor, mask_BT: Tensor, uniform_SBT: Tensor) -> Tensor:
    """Scores (S, B, T, D) float32, by the residual stream after block `layer`, on the model's device.

    ids_BT, mask_BT: as for `residual_after`; uniform_SBT: numbers above 0 and up to 1 that decide which token is drawn
    at each position (the last one of a sequence too). Scores at padding are zero. One forward pass and S backward
    passes through the blocks above `layer`; four arrays of the size of the logits are in memory.
    Raises InputError for a layer out of range or a sequence longer than the model's positions.
    """
    lm.check_layer(layer)
    lm.check_length(ids_BT.shape[1])
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        leaf_BTD = hidden_of(output).detach().requires_grad_(True)
        leaves.append(leaf_BTD)
        return leaf_BTD if isinstance(output, Tensor) else (leaf_BTD, *output[1:])

    mask_BT = mask_BT.to(lm.device)
    handle = lm.blocks[layer].register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits_BTV = lm.logits(ids_BT, mask_BT)
    finally:
        handle.remove()
    if len(leaves) != 1:
        raise InputError(f"block {layer} of model {lm.name} was run {len(leaves)} times in a forward pass, not once")
    with torch.no_grad():
        probability_BTV = logits_BTV.float().softmax(dim=-1)
    drawn_SBT = _draw(probability_BTV, uniform_SBT.to(lm.device))
    scores = []
    for number, drawn_BT in enumerate(drawn_SBT):
        # The gradient of a log-probability by the logits: 1 at the token drawn, minus the probabilities.
        by_logits_BTV = -probability_BTV
        by_logits_BTV.scatter_add_(2, drawn_BT[..., None], torch.ones_like(by_logits_BTV[..., :1]))
        by_logits_BTV *= mask_BT[..., None]
        last = number == len(drawn_SBT) - 1
        (score_BTD,) = torch.autograd.grad(
            logits_BTV, leaves, by_logits_BTV.to(logits_BTV.dtype), retain_graph=not last
        )
        scores.append(score_BTD.float())
    return torch.stack(scores)


@torch.no_grad()
def _draw(probability_BTV: Tensor, uniform_SBT: Tensor) -> Tensor:
    """Token ids (S, B, T): the first at which the summed probabilities reach the number given."""
    probability_PV = probability_BTV.flatten(0, 1)
    uniform_PS = uniform_SBT.flatten(1).T.to(probability_PV.dtype)
    drawn = []
    for part in chunks(*probability_PV.shape):
        summed_PV = probability_PV[part].cumsum(dim=-1)
        # Times the sum of all, which rounding leaves a little beside 1: a token of no probability is never drawn.
        wanted_PS = (uniform_PS[part] * summed_PV[:, -1:]).contiguous()
        drawn.append(torch.searchsorted(summed_PV, wanted_PS))
    return torch.cat(drawn).T.reshape(uniform_SBT.shape)
