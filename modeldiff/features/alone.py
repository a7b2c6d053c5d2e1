"""Shared features as they would be if they belonged to one model alone: read through one of their two encoders.

How much of such a feature the other model's activations explain, is what a concept of both models would show in an
exclusive partition: the scale that the exclusive features' own figures are held against (verdict.py).

Legend: N pairs of the sample, D width of one model, F features, R reference features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.console import progress
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audit import EXTREME_NORM
from modeldiff.features.codes import CodeSample
from modeldiff.features.rows import activations_of
from modeldiff.workspace.activations import ActivationStore

_REFERENCES = 256


def reference_features(crosscoder: Crosscoder, sample: CodeSample, least_firings: int) -> NDArray[np.int64]:
    """Up to 256 shared features that neither model dominates, spread evenly over those that fire often enough."""
    shared = crosscoder.slices["shared"]
    relative = crosscoder.relative_norm().detach().cpu().numpy()
    fires = np.bincount(sample.codes_NF.indices, minlength=crosscoder.n_features)
    fits = (np.abs(relative - 0.5) <= EXTREME_NORM - 0.5) & (fires >= least_firings)
    candidates = shared.start + np.flatnonzero(fits[shared])
    if len(candidates) <= _REFERENCES:
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, _REFERENCES).round().astype(np.int64)]


def read_alone(
    crosscoder: Crosscoder, store: ActivationStore, sample: CodeSample, reference_R: NDArray[np.int64], side: str
) -> sparse.csr_matrix:
    """(N, R) float32: the features' activations from one side's encoder, firing as often as the features do.

    Like an exclusive feature's, they start at the selection's threshold.
    """
    n, fires_R = len(sample.rows_N), np.diff(sample.codes_NF.tocsc().indptr)[reference_R]
    if not n or not len(reference_R):
        return sparse.csr_matrix((n, len(reference_R)), dtype=np.float32)
    w_enc = (crosscoder.w_enc_a if side == "a" else crosscoder.w_enc_b).detach()
    w_RD = w_enc[torch.from_numpy(reference_R - crosscoder.sees(side).start).to(w_enc.device)]
    scale = crosscoder.config.scale_a if side == "a" else crosscoder.config.scale_b
    pre_NR = np.empty((n, len(reference_R)), np.float32)
    with progress(f"features: shared ones read from {side.upper()} alone", n, "pairs") as bar:
        for rows, x_ND in activations_of(store, side, sample.rows_N):
            pre_NR[rows] = (x_ND.to(w_RD.device).float() * scale @ w_RD.T).cpu().numpy()
            bar.advance(len(x_ND))
    columns = []
    for pre_N, fires in zip(pre_NR.T, fires_R, strict=True):
        # The `fires` largest are above the next one; what fires on all pairs leaves out the smallest.
        place = max(0, n - fires - 1)
        over_N = pre_N - np.partition(pre_N, place)[place]
        columns.append(sparse.csr_matrix(np.where(over_N > 0, over_N + crosscoder.config.threshold, 0)[:, None]))
    return sparse.hstack(columns, format="csr", dtype=np.float32)
