"""The residual stream after a block: read it, change it, take gradients by it.

Layer index: `layer` L is the residual stream after block L, counted from 0, which most architectures of transformers
list as `hidden_states[L + 1]`.
Shapes: B batch, T tokens, D width of the model's residual stream, R replaced positions, N responses, S draws,
V vocabulary, P = B * T positions, G features of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeldiff.console import Progress
from modeldiff.errors import InputError, MachineError
from modeldiff.lm.batches import chunks, padded
from modeldiff.lm.device import onto
from modeldiff.lm.model import Decoder, LanguageModel, hidden_of, hooked, not_handed_on, probe, probe_ids, with_hidden


class _LayerReached(Exception):  # noqa: N818 - a signal that ends a pass early, not an error
    """Raised by the hook once the wanted tensor is there."""


def residual_after(lm: LanguageModel, layer: int, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The residual stream after block `layer`, x_BTD, in the model's dtype and on its device.

    ids_BT: int64 token ids, padded on the right with any valid id; mask_BT: 1 at tokens, 0 at padding (rows of x at
    padding have no meaning). Blocks after `layer` and the logits are not computed. The result is an inference
    tensor: clone it before using it in autograd. Inside `changed` on the same layer the change is included.
    Raises InputError for a layer out of range or a sequence longer than the model's positions.
    """
    lm.check_layer(layer)
    lm.check_length(ids_BT.shape[1])
    lm.check_ids(int(ids_BT.max()), lm.tokenizer)
    seen: list[Tensor] = []

    def take(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(hidden_of(output, lm.axis).to(lm.device))
        raise _LayerReached

    with suppress(_LayerReached), hooked([lm.blocks[layer]], take), torch.inference_mode():
        lm.body(input_ids=onto(ids_BT, lm.device), attention_mask=onto(mask_BT, lm.device), use_cache=False)
    if not seen:
        raise InputError(f"block {layer} of model {lm.name} was not run in a forward pass: it cannot be read")
    return seen[0]


def mean_residuals(
    lm: LanguageModel, layer: int, spoken: Sequence[tuple[list[int], list[int]]], bar: Progress, batch_size: int = 16
) -> Tensor:
    """The residual stream after block `layer`, averaged over the tokens of each response, not of its prompt: (N, D)
    float32 on the CPU. spoken: token ids of each prompt, special ones included, and of its response, neither empty.
    Raises InputError for a sequence too long for the model."""
    ids = [torch.tensor(prompt + response) for prompt, response in spoken]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    mean_ND = torch.empty(len(ids), lm.width)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids_BT, mask_BT = padded([ids[row] for row in rows])
        x_BTD = residual_after(lm, layer, ids_BT, mask_BT).float()
        prompt_B1 = torch.tensor([[len(spoken[row][0])] for row in rows])
        said_BT = (mask_BT.bool() & (torch.arange(mask_BT.shape[1]) >= prompt_B1)).to(x_BTD.device)
        # Not a product with a mask: what stands at padding may not be finite.
        sum_BD = x_BTD.masked_fill(~said_BT[..., None], 0.0).sum(dim=1)
        mean_ND[rows] = (sum_BD / said_BT.sum(dim=1, keepdim=True)).cpu()
        bar.advance(len(rows))
    return mean_ND


@contextmanager
def changed(lm: Decoder, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the context is open, the residual stream after block `layer` is what `change` makes of it.

    `change` takes (B, T, D) in the model's dtype and gives (B, T, D), which is rounded once to that dtype. The model
    itself is not changed, and the hook is removed when the context closes, also on an error. Contexts may be nested.
    Raises InputError for a layer out of range.
    """
    lm.check_layer(layer)

    def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden_BTD = hidden_of(output, lm.axis)
        return with_hidden(output, change(hidden_BTD.to(lm.device)).to(hidden_BTD), lm.axis)

    with hooked([lm.blocks[layer]], replace):
        yield


def add_to_residual(lm: Decoder, layer: int, vector: Tensor) -> AbstractContextManager[None]:
    """While the context is open, add a vector to the residual stream after block `layer` at every token: (D,), or (B,
    D) with one for each sequence; any float dtype and device, in the model's own units. Raises InputError for a vector
    that does not fit or is not finite, and (in the pass) for a batch of another size."""
    if vector.ndim not in (1, 2) or vector.shape[-1] != lm.width:
        raise InputError(
            f"a steering vector for model {lm.name} must have shape ({lm.width},), or (batch, {lm.width}) for a batch, "
            f"but has {tuple(vector.shape)}"
        )
    if not torch.isfinite(vector).all():
        raise InputError(f"the steering vector for model {lm.name} holds values that are not finite")
    # (D,), or (B, 1, D).
    addend = (vector if vector.ndim == 1 else vector[:, None]).detach().to(lm.device, torch.float32)

    def add(hidden_BTD: Tensor) -> Tensor:
        if addend.ndim == 3 and len(hidden_BTD) != len(addend):
            raise InputError(f"{len(addend)} steering vectors were given for {len(hidden_BTD)} sequences")
        return hidden_BTD + addend

    return changed(lm, layer, add)


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
    every token, written ones too; `shown` has those of each sequence. Raises InputError for a layer out of range, or
    (in the pass) another number of sequences."""

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


def replace_in_residual(
    lm: LanguageModel, layer: int, sequence_R: Tensor, position_R: Tensor, x_RD: Tensor
) -> AbstractContextManager[None]:
    """While the context is open, the residual stream after block `layer` is `x_RD` at the given positions.

    sequence_R, position_R: int64 (R,), which sequence of the batch and which of its tokens (padding is on the right);
    x_RD: any float dtype and device, in the model's own units. R may be 0. For passes over one batch, not for
    generation. Raises InputError for values that are not finite.
    """
    if not torch.isfinite(x_RD).all():
        raise InputError(f"the values to put into model {lm.name} are not all finite")
    index = (sequence_R.to(lm.device), position_R.to(lm.device))
    values_RD = x_RD.detach().to(lm.device)

    def put(hidden_BTD: Tensor) -> Tensor:
        replaced_BTD = hidden_BTD.clone()
        replaced_BTD[index] = values_RD.to(hidden_BTD.dtype)
        return replaced_BTD

    return changed(lm, layer, put)


def sampled_scores(lm: LanguageModel, layer: int, ids_BT: Tensor, mask_BT: Tensor, uniform_SBT: Tensor) -> Tensor:
    """Scores (S, B, T, D) float32, by the residual stream after block `layer`, on the model's device.

    A score is the gradient, by the residual stream, of the log-probabilities of next tokens that were drawn from the
    model's own distribution. Its mean is zero and its covariance the Fisher information: for a small change v of the
    stream, KL(unchanged || changed), summed over the positions, is half the expected square of score . v.

    ids_BT, mask_BT: as for `residual_after`; uniform_SBT: numbers above 0 and up to 1 that decide which token is drawn
    at each position (the last one of a sequence too). Scores at padding are zero. One forward pass and S backward
    passes through the blocks above `layer`; four arrays of the size of the logits are in memory.
    Raises InputError for a layer out of range or a sequence longer than the model's positions.
    """
    lm.check_length(ids_BT.shape[1])
    leaves: list[Tensor] = []

    def cut(hidden_BTD: Tensor) -> Tensor:
        leaves.append(hidden_BTD.detach().requires_grad_(True))
        return leaves[-1]

    mask_BT = mask_BT.to(lm.device)
    with changed(lm, layer, cut), torch.enable_grad():
        logits_BTV = lm.logits(ids_BT, mask_BT)
    if len(leaves) != 1:
        raise InputError(f"block {layer} of model {lm.name} was run {len(leaves)} times in a forward pass, not once")
    with torch.no_grad():
        probability_BTV = logits_BTV.float().softmax(dim=-1)
    drawn_SBT = _draw(probability_BTV, uniform_SBT.to(lm.device))
    scores = []
    for number, drawn_BT in enumerate(drawn_SBT, 1):
        # The gradient of a log-probability by the logits: 1 at the token drawn, minus the probabilities.
        by_logits_BTV = -probability_BTV
        by_logits_BTV.scatter_add_(2, drawn_BT[..., None], torch.ones_like(by_logits_BTV[..., :1]))
        by_logits_BTV *= mask_BT[..., None]
        (score_BTD,) = torch.autograd.grad(
            logits_BTV, leaves, by_logits_BTV.to(logits_BTV.dtype), retain_graph=number < len(drawn_SBT)
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


def verify_hook(lm: LanguageModel, layer: int) -> None:
    """Check in short passes that what the hook on block `layer` sees is what the model goes on with: the next block
    takes exactly that, and after the last one, what the model predicts follows from it alone.

    Raises InputError if the architecture goes on with something else, MachineError if the values are not finite.
    """
    lm.check_layer(layer)
    calls = probe(lm.model, lm.blocks)
    if wrong := not_handed_on(lm.blocks, calls, lm):
        raise InputError(f"the blocks of model {lm.name} cannot be read: {wrong}")
    if not calls[lm.blocks[layer]]:
        raise InputError(f"block {layer} of model {lm.name} does not run for text alone: choose another --layer")
    if not all(torch.isfinite(call.given).all() for call in calls[lm.blocks[layer]] if call.given is not None):
        raise MachineError(
            f"block {layer} of model {lm.name} gives values that are not finite in {lm.dtype}: "
            "use --dtype float32 or bfloat16, or check the weights"
        )
    if layer == lm.n_layers - 1 and not _decides(lm, layer):
        raise InputError(
            f"what model {lm.name} predicts does not follow from the output of its last block: "
            "this architecture cannot be read there"
        )


@torch.inference_mode()
def _decides(lm: LanguageModel, layer: int) -> bool:
    """Whether one text with the residual stream of another after block `layer` has the logits of the other."""
    ids_BT = probe_ids(lm.model)
    other_BT, mask_BT = ids_BT.flip(1), torch.ones_like(ids_BT)
    x_BTD = residual_after(lm, layer, other_BT, mask_BT)
    expected_BTV = lm.logits(other_BT, mask_BT).float()
    with changed(lm, layer, lambda _: x_BTD):
        found_BTV = lm.logits(ids_BT, mask_BT).float()
    # Equal but for rounding, which depends on the device.
    return torch.allclose(found_BTV, expected_BTV, rtol=1e-2, atol=1e-2 * float(expected_BTV.abs().max()))
