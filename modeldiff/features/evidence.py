"""Predictability: how much of a feature's activation a linear map of one model's activations explains (held out).

A feature that only A has should be explained by A's activations and not by B's (a sparse feature is never fully linear
in either, so both sides are measured). Ridge regression in closed form, float64, for all features at once, from the
moments of one pass over a sample of the pairs.

Legend: N pairs, D width of one model, F features, G features of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.predictability import Moments, held_out_r2
from modeldiff.features.alone import read_alone, reference_features
from modeldiff.features.codes import CodeSample
from modeldiff.features.rows import activations_of
from modeldiff.features.verdict import Scale, scale_of
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.plan import SIDES

HELD_OUT_EVERY = 5
"""Every 5th stretch of the sample is held out."""
MIN_FIRINGS = 5
"""Fewer firings than this in either part: R² would be a matter of luck, none is given."""
REFERENCE_FIRINGS = 50
"""A shared feature that fires less often in the sample is no reference: its R² would be noise."""
# Stretches are long enough that neighbouring tokens of one text rarely fall in different parts.
_MAX_STRETCH, _MIN_STRETCHES = 512, 20
_GROUP_BYTES = 2 << 30


@dataclass(frozen=True)
class Evidence:
    """Held-out R², by the side "a" or "b" whose activations explain; NaN where a feature fires too rarely.

    Attributes:
        r2: (F,) of every feature.
        null: (F,) the same in permuted pairs.
        alone: for the side that a reference feature is read from, (R,) its R² by explaining side.
    """

    r2: dict[str, NDArray[np.float32]]
    null: dict[str, NDArray[np.float32]]
    alone: dict[str, dict[str, NDArray[np.float32]]]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """To be stored: r2_a, r2_b, null_a, null_b, and alone_XY, of features read from X, explained by Y."""
        named = {f"{name}_{side}": values for name in ("r2", "null") for side, values in getattr(self, name).items()}
        return named | {f"alone_{x}{y}": values for x, both in self.alone.items() for y, values in both.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Evidence:
        """The inverse of `arrays`."""
        return cls(
            r2={side: arrays[f"r2_{side}"] for side in SIDES},
            null={side: arrays[f"null_{side}"] for side in SIDES},
            alone={x: {y: arrays[f"alone_{x}{y}"] for y in SIDES} for x in SIDES},
        )

    def scales(self, crosscoder: Crosscoder) -> dict[str, Scale]:
        """By side, what the ratios of its features are held against. The null is that of its exclusive features."""
        result = {}
        for side, other, partition in (("a", "b", "A"), ("b", "a", "B")):
            null_F = self.null[other][crosscoder.slices[partition]]
            result[side] = scale_of(self.alone[side][side], self.alone[side][other], null_F)
        return result


def evidence_of(crosscoder: Crosscoder, store: ActivationStore, sample: CodeSample, device: torch.device) -> Evidence:
    """All regressions in one pass over the sample for each side."""
    n, n_features = sample.codes_NF.shape
    reference_R = reference_features(crosscoder, sample, REFERENCE_FIRINGS)
    alone = [read_alone(crosscoder, store, sample, reference_R, side) for side in SIDES]
    # Far apart: neighbouring pairs are of one text.
    permuted_NF = sample.codes_NF[(np.arange(n) + n // 2) % max(1, n)]
    targets = sparse.hstack([sample.codes_NF, permuted_NF, *alone], format="csr")
    r2 = predictability(store, CodeSample(targets, sample.rows_N), device)
    ends = np.cumsum([n_features, n_features, len(reference_R)])
    parts = {side: np.split(values, ends) for side, values in r2.items()}
    return Evidence(
        r2={side: parts[side][0] for side in SIDES},
        null={side: parts[side][1] for side in SIDES},
        alone={side: {explains: parts[explains][2 + i] for explains in SIDES} for i, side in enumerate(SIDES)},
    )


def predictability(store: ActivationStore, sample: CodeSample, device: torch.device) -> dict[str, NDArray[np.float32]]:
    """Held-out R² of every feature from each model's activations.

    Returns:
        By side "a" and "b", (F,) float32: 1 - residual / total sum of squares on the held-out pairs, NaN where a
        feature fires too rarely. Below 0: worse than the held-out mean.
    """
    n_features = sample.codes_NF.shape[1]
    group = max(1, min(n_features, _GROUP_BYTES // (2 * 8 * max(store.widths))))
    starts = range(0, n_features, group)
    # mps has no float64.
    device = device if device.type == "cuda" else torch.device("cpu")
    held_N = held_out(len(sample.rows_N))
    columns = sample.codes_NF.tocsc()
    result = {side: np.full(n_features, np.nan, np.float32) for side in SIDES}
    total = len(SIDES) * len(starts) * len(sample.rows_N)
    with progress("features: predictability", total, "pairs") as bar:
        for side in SIDES:
            mean_D = store.mean[side].to(device).double()
            for start in starts:
                chosen = slice(start, min(start + group, n_features))
                codes_NG = columns[:, chosen].tocsr().astype(np.float64)
                width, targets = store.info.sides[side].width, codes_NG.shape[1]
                parts = [Moments.empty(width, targets) for _ in range(2)]
                for rows, x_ND in activations_of(store, side, sample.rows_N):
                    x_ND = x_ND.to(device).double() - mean_D
                    for held, part in enumerate(parts):
                        mask = held_N[rows] == bool(held)
                        _add(part, x_ND[torch.from_numpy(mask).to(device)], codes_NG[rows][mask])
                    bar.advance(len(x_ND))
                r2_G = held_out_r2(*parts).numpy()
                result[side][chosen] = np.where(_firings(codes_NG, held_N) >= MIN_FIRINGS, r2_G, np.nan)
    return result


def held_out(n: int) -> NDArray[np.bool_]:
    """(N,) True for the pairs of the sample that no regression is fitted on."""
    stretch = max(1, min(_MAX_STRETCH, n // _MIN_STRETCHES))
    return (np.arange(n) // stretch) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _add(part: Moments, x_ND: torch.Tensor, f_NG: sparse.csr_matrix) -> None:
    """Take in pairs: inputs float64 on any device, codes float64. What is sparse is summed on the host."""
    sums = (
        np.asarray(f_NG.sum(axis=0)).ravel(),
        np.asarray(f_NG.multiply(f_NG).sum(axis=0)).ravel(),
        f_NG.T @ x_ND.cpu().numpy(),
    )
    part.add(x_ND, *map(torch.from_numpy, sums))


def _firings(codes_NG: sparse.csr_matrix, held_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(G,) firings in that part, training or held out, in which the feature fires less."""
    return np.minimum(*(np.bincount(codes_NG[m].indices, minlength=codes_NG.shape[1]) for m in (held_N, ~held_N)))
