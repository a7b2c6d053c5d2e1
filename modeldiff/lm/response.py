"""What a model computes on a prompt with a given response: the mean residual of the response's tokens.

Shapes: B batch, N responses, T tokens, D width of the model's residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modeldiff.console import Progress
from modeldiff.errors import InputError
from modeldiff.lm.batches import padded
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import residual_after

BATCH_SIZE = 16


@dataclass(frozen=True)
class Response:
    """A prompt and what is said after it, as one model's tokens."""

    prompt_ids: list[int]
    """With the special tokens it needs; at least one."""
    ids: list[int]
    """The response alone; at least one."""


def mean_residuals(
    lm: LanguageModel,
    layer: int,
    responses: Sequence[Response],
    *,
    batch_size: int = BATCH_SIZE,
    bar: Progress | None = None,
) -> Tensor:
    """The residual stream after block `layer`, averaged over the tokens of each response: (N, D) float32 on the CPU.

    The prompt is read, but not averaged over. Raises InputError for a sequence too long for the model.
    """
    mean_ND = torch.empty(len(responses), lm.width)
    for rows, ids_BT, mask_BT, said_BT in _batches(lm, responses, batch_size):
        x_BTD = residual_after(lm, layer, ids_BT, mask_BT).float()
        # Not a product with a mask: what stands at padding may not be finite.
        x_BTD = x_BTD.masked_fill(~said_BT.to(x_BTD.device)[..., None], 0.0)
        mean_BD = x_BTD.sum(dim=1) / said_BT.sum(dim=1, keepdim=True).to(x_BTD.device)
        mean_ND[rows] = mean_BD.cpu()
        if bar:
            bar.advance(len(rows))
    return mean_ND


def _batches(
    lm: LanguageModel, responses: Sequence[Response], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """(indices, ids_BT, mask_BT, said_BT: True at tokens of the response), padded on the right, by length."""
    for one in responses:
        if not one.prompt_ids or not one.ids:
            raise InputError("a prompt or a response has no tokens")
        lm.check_length(len(one.prompt_ids) + len(one.ids))
    length: Callable[[int], int] = lambda i: len(responses[i].prompt_ids) + len(responses[i].ids)  # noqa: E731
    order = sorted(range(len(responses)), key=length)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids_BT, mask_BT = padded([torch.tensor(responses[row].prompt_ids + responses[row].ids) for row in rows])
        said_BT = mask_BT.bool()
        for said_T, row in zip(said_BT, rows, strict=True):
            said_T[: len(responses[row].prompt_ids)] = False
        yield rows, ids_BT, mask_BT, said_BT
