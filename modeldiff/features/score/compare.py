"""From effects to similarities, with the null in the same breath. The effect judge's arithmetic.

- What any push does is no likeness: of every effect the part along the mean effect of the random directions, pushed in
  the same model along the same route at the same strength, is taken away (a random direction is not counted in its own
  mean). The second-order part of pushing, such as that distributions become flatter, is such a part.
- Similarity is 1 + 4 max(0, cos) of what is left of the two models' effects, the largest over all pairs of strengths,
  for one model may need a stronger push than the other. Two effects that share nothing have about 1, equal ones 5.
- Null: the same between one feature's effect in the source and *another* feature's in the target.
- Steerable is a feature whose effect on its own model, pushed at the norm of the random directions, is larger than
  that of 95 % of these.

Legend: N subjects of a group, R random directions of a route, S strengths, K buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A root mean square angle below this is rounding: nothing was moved.
_NO_ANGLE = 1e-4
STEERABLE_QUANTILE = 0.95


@dataclass(frozen=True)
class Compared:
    """A group's similarities."""

    similarity_N: NDArray[np.float64]
    """1 to 5."""
    strengths_N2: NDArray[np.int64]
    """At which strengths of source and target, as indices."""
    mismatched: NDArray[np.float64]
    """Similarities of effects that do not belong together, N (N - 1) of them."""


def without_common(effect_NSK: Tensor, random_RSK: Tensor, own: Sequence[int | None]) -> Tensor:
    """The effects (N, S, K) without the part along the mean effect of the random directions at the same strength.

    Args:
        own: for each effect which of the random directions it belongs to; None: to none.
    """
    count = len(random_RSK)
    if count < 2:
        return effect_NSK
    total_SK = random_RSK.sum(dim=0)
    rest = []
    for effect_SK, number in zip(effect_NSK, own, strict=True):
        mean_SK = total_SK / count if number is None else (total_SK - random_RSK[number]) / (count - 1)
        along_S1 = (effect_SK * mean_SK).sum(dim=1, keepdim=True)
        square_S1 = mean_SK.square().sum(dim=1, keepdim=True)
        rest.append(effect_SK - along_S1 / square_S1.clamp_min(torch.finfo(torch.float32).tiny) * mean_SK)
    return torch.stack(rest)


def compare(source_NSK: Tensor, target_NSK: Tensor, source_size_NS: Tensor, target_size_NS: Tensor) -> Compared:
    """Similarity of each subject's effects in the two models, and of mismatched ones.

    Args:
        source_NSK, target_NSK: effects, the common part taken away.
        source_size_NS, target_size_NS: where an effect is nothing but rounding, it is like no other.
    """
    n, strengths = source_size_NS.shape
    cos_NNSS = np.empty((n, n, strengths, strengths))
    for i in range(strengths):
        source_NK = _unit(source_NSK[:, i], source_size_NS[:, i])
        for j in range(strengths):
            cos_NNSS[:, :, i, j] = (source_NK @ _unit(target_NSK[:, j], target_size_NS[:, j]).T).numpy()
    cos_NNS = cos_NNSS.reshape(n, n, strengths**2)
    similarity_NN = similarity(cos_NNS.max(axis=2))
    is_own = np.eye(n, dtype=bool)
    best_N = cos_NNS[is_own].argmax(axis=1)
    strengths_N2 = np.stack(np.divmod(best_N, strengths), axis=1)
    return Compared(similarity_NN[is_own], strengths_N2, similarity_NN[~is_own])


def similarity(cos: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 for effects that share nothing or are opposite, 5 for equal ones."""
    return 1 + 4 * np.clip(np.asarray(cos, np.float64), 0, 1)


def steerability(size: float, random_R: NDArray[np.floating]) -> tuple[float, bool]:
    """(share of the random directions with a smaller effect, whether it exceeds their 95 % quantile)."""
    return float((random_R < size).mean()), bool(size > np.quantile(random_R, STEERABLE_QUANTILE))


def _unit(effect_NK: Tensor, size_N: Tensor) -> Tensor:
    """Length 1, or 0 where there is no effect. float64: equal effects have a cosine of 1 to the last digits shown."""
    effect_NK = effect_NK.double()
    norm_N = effect_NK.norm(dim=1)
    is_there_N = (norm_N > 0) & (size_N > _NO_ANGLE)
    return effect_NK * (is_there_N / norm_N.clamp_min(torch.finfo(torch.float64).tiny))[:, None]
