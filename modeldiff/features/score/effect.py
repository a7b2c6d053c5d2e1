"""What a push does to a model's next-token distributions on common text.

At every place where a pair was taken both models stand at the same character, so what they say next can be compared,
over buckets of strings that both can say. A distribution p is taken as the point sqrt(p) on the unit sphere; what a
push does at one place is the tangent vector at the unpushed point that leads to the pushed one. It is orthogonal to the
unpushed distribution, so that a push which merely takes from whatever was likely, in both models alike, is no likeness;
it weighs strings by their probability; and its length is the angle between the two distributions (for small ones half
the Fisher distance). The effect of a push is the mean of these vectors over the places: which strings the model says
more, and which less, whatever the text. As in generation the vector is added at every token of the text.

Legend: B windows of a batch, T tokens, P places, K buckets, S strengths, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from modeldiff.errors import MachineError
from modeldiff.features.windows import Window, padded_windows
from modeldiff.lm.batches import batches, token_budget
from modeldiff.lm.buckets import Buckets
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual

# Logits of a batch: 512 MiB in float32.
_LOGIT_VALUES = 1 << 27


@dataclass(frozen=True)
class Effect:
    """What one push does, strength by strength."""

    effect_SK: Tensor
    """Mean tangent vector over the places, float32 on the CPU."""
    size_S: Tensor
    """Root mean square, over the places, of the angle between the two distributions."""


@dataclass(frozen=True)
class _Batch:
    ids_BT: Tensor
    mask_BT: Tensor
    at_P: tuple[Tensor, Tensor]
    base_PK: Tensor
    """sqrt of the unpushed model's probabilities."""


class EffectMeter:
    """Measures pushes in one model on the same places.

    Args:
        side: "a" or "b", which of each window's tokens are the model's.

    Raises:
        InputError: a window is too long for the model.
        MachineError: a batch does not fit into memory.
    """

    def __init__(self, lm: LanguageModel, layer: int, side: str, buckets: Buckets, windows: Sequence[Window]) -> None:
        self._lm, self._layer, self._side, self._buckets = lm, layer, side, buckets
        budget = token_budget(lm, logit_values=_LOGIT_VALUES)
        self._places = sum(len(window.rows) for window in windows)
        lengths = [len(window.ids[side]) for window in windows]
        lm.check_length(max(lengths))
        self._batches = [self._batch([windows[i] for i in chosen]) for chosen in batches(lengths, budget)]

    def measure(self, vectors: Sequence[Tensor]) -> Effect:
        """The effect of each vector (D,): S of them."""
        effects, sizes = [], []
        for vector_D in vectors:
            total_K, squares = torch.zeros(len(self._buckets.names), dtype=torch.float64), 0.0
            for batch in self._batches:
                pushed_PK = self._distribution(batch.ids_BT, batch.mask_BT, batch.at_P, vector_D).sqrt()
                tangent_PK, angle_P = tangents(batch.base_PK, pushed_PK)
                total_K += tangent_PK.sum(dim=0).double().cpu()
                squares += float(angle_P.double().square().sum())
            effects.append((total_K / self._places).float())
            sizes.append((squares / self._places) ** 0.5)
        return Effect(torch.stack(effects), torch.tensor(sizes))

    def _batch(self, windows: list[Window]) -> _Batch:
        ids_BT, mask_BT = padded_windows(windows, self._side)
        sequence_P = torch.repeat_interleave(torch.tensor([len(window.rows) for window in windows]))
        token_P = torch.cat([torch.from_numpy(window.token[self._side]) for window in windows])
        at_P = (sequence_P.to(self._lm.device), token_P.to(self._lm.device))
        ids_BT, mask_BT = ids_BT.to(self._lm.device), mask_BT.to(self._lm.device)
        return _Batch(ids_BT, mask_BT, at_P, self._distribution(ids_BT, mask_BT, at_P, None).sqrt())

    @torch.inference_mode()
    def _distribution(
        self, ids_BT: Tensor, mask_BT: Tensor, at_P: tuple[Tensor, Tensor], vector_D: Tensor | None
    ) -> Tensor:
        """Probabilities (P, K) of what comes next."""
        pushed = nullcontext() if vector_D is None else add_to_residual(self._lm, self._layer, vector_D)
        try:
            with pushed:
                logits_BTV = self._lm.logits(ids_BT, mask_BT)
            return self._buckets.gather(self._side, logits_BTV[at_P].float().softmax(dim=-1))
        except torch.OutOfMemoryError:
            raise MachineError(
                f"a batch of {len(ids_BT)} windows does not fit into the memory of {self._lm.device} with model "
                f"{self._side.upper()} ({self._lm.name}): use fewer --positions, or --dtype bfloat16"
            ) from None


def tangents(base_PK: Tensor, pushed_PK: Tensor) -> tuple[Tensor, Tensor]:
    """(tangent vectors (P, K), their lengths (P,)) from one point of the unit sphere to another, row by row."""
    along_P1 = (base_PK * pushed_PK).sum(dim=1, keepdim=True)
    across_PK = pushed_PK - along_P1 * base_PK
    # The angle from its sine: float32 cannot tell the cosine of a small one from 1.
    sine_P1 = across_PK.norm(dim=1, keepdim=True)
    angle_P1 = torch.atan2(sine_P1, along_P1)
    return across_PK * (angle_P1 / sine_P1.clamp_min(torch.finfo(torch.float32).tiny)), angle_P1[:, 0]
