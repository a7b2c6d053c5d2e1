"""How far the second order is from really removing a feature: both, for a few features in a few windows.

A feature's activation is no small change of the stream, so the impacts rank features better than they measure them.

Legend: K features checked, N pairs of the sample, R pairs of a window, D width of the model, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.features.measures.impact.removal import Directions, scores_of, window_nats
from modeldiff.features.splice import next_token_losses
from modeldiff.features.windows import Window
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.replace import replace_in_residual
from modeldiff.lm.residual import residual_after

FEATURES, WINDOWS, DRAWS = 32, 4, 8


@dataclass(frozen=True)
class Check:
    """Nats in the same windows, at most WINDOWS of each feature."""

    feature_K: NDArray[np.int64]
    second_K: NDArray[np.float64]
    """To second order."""
    exact_K: NDArray[np.float64]
    """With the feature subtracted from the stream."""


def check(
    lm: LanguageModel,
    layer: int,
    side: str,
    windows: Sequence[Window],
    codes_NF: sparse.csr_matrix,
    own: Directions,
    *,
    seed: int,
) -> Check:
    """Random features of a model among those that fire, in random windows in which they do.

    Args:
        codes_NF: of the windows' pairs, in order; own: the model's own directions.
    """
    random = np.random.default_rng((seed, 3))
    first_row = np.cumsum([0, *(len(window.rows) for window in windows)])
    codes_NK = codes_NF[:, own.column_K].tocsc()
    alive = np.flatnonzero(np.diff(codes_NK.indptr))
    chosen = np.sort(random.choice(alive, min(FEATURES, len(alive)), replace=False))
    second_K, exact_K = np.zeros(len(chosen)), np.zeros(len(chosen))
    with progress(f"impact {side.upper()}: really removed", len(chosen), "features") as bar:
        for at, k in enumerate(chosen):
            rows = codes_NK.indices[codes_NK.indptr[k] : codes_NK.indptr[k + 1]]
            fires_in = np.unique(np.searchsorted(first_row, rows, side="right") - 1)
            for number in random.choice(fires_in, min(WINDOWS, len(fires_in)), replace=False).tolist():
                codes_R1 = codes_NK[first_row[number] : first_row[number + 1], [k]].tocsr()
                ((_, score_SRD),) = scores_of(lm, layer, side, windows, [number], DRAWS, seed)
                second_K[at] += window_nats(codes_R1, own.seen_by(score_SRD), own.rows_KD[k : k + 1])[1].sum()
                f_R = torch.from_numpy(codes_R1.toarray()[:, 0])
                exact_K[at] += removed_kl(lm, layer, side, windows[number], f_R, own.to_raw(own.rows_KD[k]))
            bar.advance()
    return Check(own.column_K[chosen], second_K, exact_K)


@torch.inference_mode()
def removed_kl(
    lm: LanguageModel, layer: int, side: str, window: Window, f_R: torch.Tensor, row_D: torch.Tensor
) -> float:
    """KL(unchanged || without f_R times row_D at the window's pairs), summed over all its positions, nats.

    Args:
        row_D: raw units of the model.
    """
    ids_1T = torch.from_numpy(window.ids[side])[None]
    mask_1T = torch.ones_like(ids_1T)
    at_R = torch.from_numpy(window.token[side])
    x_RD = residual_after(lm, layer, ids_1T, mask_1T)[0, at_R.to(lm.device)].float()
    x_RD = x_RD - f_R.to(x_RD)[:, None] * row_D.to(x_RD)
    clean_1TV = lm.logits(ids_1T, mask_1T)
    with replace_in_residual(lm, layer, torch.zeros_like(at_R), at_R, x_RD):
        without_1TV = lm.logits(ids_1T, mask_1T)
    every_T = torch.arange(ids_1T.shape[1], device=lm.device)
    zero_T = torch.zeros_like(every_T)
    return float(next_token_losses(without_1TV, clean_1TV, (zero_T, every_T), zero_T)[1].sum())
