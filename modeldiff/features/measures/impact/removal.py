"""What removing features from one model's residual stream does to its predictions, all features in a few passes.

Removing feature i subtracts f_i(t) d_i from the stream at the tokens t of a window's pairs. To second order the KL from
the model's own predictions to what is left of them, summed over the window, is the mean over draws of a_i² / 2 with
a_i = sum_t f_i(t) d_i . score_t (see modeldiff/lm/residual.py; scores have mean zero, so places that follow from one
another need no cross terms). A window's scores serve all features. An activation is no small change, so the impacts
rank features better than they measure them: `check` really removes a few features in a few windows.

Of a direction that the stitch moves here the scores are moved back: score . (d M) = (score M^T) . d. In memory are the
dictionary, the codes of the sample (sparse), four arrays of a batch's logits, a batch's scores and, for the features
that fire in one window, at most 256 MiB at once: features times (pairs + draws x width).

Legend: S draws, T tokens, D width of this model or of the one that directions come from, N pairs of the sample, R pairs
of a window, F features, K directions that are removed, A those of them that fire in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix

from modeldiff.catalogue.stored import Arrays, save_arrays
from modeldiff.console import progress
from modeldiff.features.measures.impact import ImpactSettings
from modeldiff.features.measures.models import LoadedModel, next_token_losses
from modeldiff.linear.maps import LinearMap
from modeldiff.lm.batches import token_budget
from modeldiff.lm.residual import replace_in_residual, residual_after, sampled_scores
from modeldiff.workspace.kept import is_sound

# Fewer tokens than a harvest's batches: the blocks above the layer keep what their backward pass needs. A batch's
# logits have at most 2^27 values (512 MiB in float32), of which four sets are in memory.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 4096, "mps": 2048}
_LOGIT_VALUES = 1 << 27
# Values of the arrays of one window's features, with what multiplying them takes: 256 MiB in float32.
_CHUNK_VALUES = 1 << 25
# What an interrupted run loses at most. Sums are taken window by window, so this changes nothing.
_PART_WINDOWS = 64
# The check takes so many features, windows of each, and draws of the next tokens.
_FEATURES, _WINDOWS, _DRAWS = 32, 4, 8


@dataclass(frozen=True)
class Directions:
    """K directions and what they fire with."""

    column_K: NDArray[np.int64]
    """Feature whose codes each one has, in the matrix of all codes."""
    rows_KD: torch.Tensor
    """Decoder rows in normalised units, of the model they come from, float32."""
    to_raw: Callable[[torch.Tensor], torch.Tensor]
    """Brings them to the units of that model's activations, and gradients in these to normalised units."""
    through: LinearMap | None = None
    """Moves them into the model they are removed from; None: they are its own."""

    def seen_by(self, score_SRD: torch.Tensor) -> torch.Tensor:
        """Scores whose product with `rows_KD` is that of the model's scores with the directions in raw units."""
        if self.through is not None:
            score_SRD = score_SRD @ self.through.w_DD.T.to(score_SRD)
        return self.to_raw(score_SRD)


def window_nats(
    codes_RK: csr_matrix, score_SRD: torch.Tensor, rows_KD: torch.Tensor, chunk_values: int = _CHUNK_VALUES
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(directions that fire in a window (A,), what removing each costs in nats (A,)) from the scores at its pairs, as
    `Directions.seen_by` gives them. `chunk_values`: of arrays in memory at once."""
    codes_RK = codes_RK.tocsc()
    active_A = np.flatnonzero(np.diff(codes_RK.indptr)).astype(np.int64)
    draws, pairs, width = score_SRD.shape
    flat_RE = score_SRD.transpose(0, 1).reshape(pairs, draws * width)
    step = max(1, chunk_values // (pairs + (draws + 1) * width))
    nats_A = np.empty(len(active_A))
    for start in range(0, len(active_A), step):
        part = active_A[start : start + step]
        f_AR = torch.from_numpy(codes_RK[:, part].toarray().T.astype(np.float32)).to(flat_RE.device)
        h_ASD = (f_AR @ flat_RE).view(len(part), draws, width)
        rows_AD = rows_KD[torch.from_numpy(part).to(rows_KD.device)].to(h_ASD)
        a_AS = torch.einsum("asd,ad->as", h_ASD, rows_AD)
        nats_A[start : start + step] = (a_AS.square().mean(dim=1) / 2).cpu().numpy()
    return active_A, nats_A


def measure(
    model: LoadedModel, codes_NF: csr_matrix, groups: dict[str, Directions], settings: ImpactSettings, *, resume: Path
) -> Arrays:
    """By group of directions, removed from one model: over the windows in which each fires the sums of nats and of
    their squares, and the number of these windows, (3, K).

    The tokens drawn in a window depend on the seed and the window's number alone: two copies of one model draw alike.

    Args:
        codes_NF: of the windows' pairs, in order.
        resume: file in which the state is kept; a run that was interrupted goes on from there.

    Raises:
        MachineError: a batch does not fit into memory.
        InputError: a window is too long for the model.
    """
    side, windows, first_row = model.side, model.windows, model.first_row
    budget = settings.batch_tokens or token_budget(model.lm, logit_values=_LOGIT_VALUES, by_device=_BATCH_TOKENS)
    order = sorted(range(len(windows)), key=lambda i: (len(windows[i].ids[side]), i))
    sums, begun = {name: np.zeros((3, len(group.column_K))) for name, group in groups.items()}, 0
    if is_sound(resume):
        sums = load_file(resume)
        begun = int(sums.pop("windows done")[0])
    done = sum(len(windows[i].rows) for i in order[:begun])
    with progress(f"impact {side.upper()}", int(first_row[-1]), "pairs", done=done) as bar:
        for start in range(begun, len(order), _PART_WINDOWS):
            part = order[start : start + _PART_WINDOWS]
            for batch in model.batches(part, budget):
                with model.memory_for(batch):
                    for number, score_SRD in scores_of(model, batch, settings.samples, settings.seed):
                        codes_RF = codes_NF[first_row[number] : first_row[number + 1]]
                        for name, group in groups.items():
                            seen_SRD = group.seen_by(score_SRD)
                            active_A, nats_A = window_nats(codes_RF[:, group.column_K], seen_SRD, group.rows_KD)
                            sums[name][:, active_A] += np.stack([nats_A, nats_A**2, np.ones(len(nats_A))])
                bar.advance(sum(len(windows[i].rows) for i in batch))
            save_arrays(resume, {**sums, "windows done": np.array([start + len(part)])})
    return sums


def mean_and_error(sums_3K: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(nats per window in which it fires, standard error over windows); NaN for none, and for the error of one."""
    total_K, square_K, windows_K = sums_3K
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_K = total_K / windows_K
        variance_K = np.maximum(square_K / windows_K - mean_K**2, 0) / (windows_K - 1)
    return mean_K, np.sqrt(np.where(windows_K > 1, variance_K, np.nan))


def scores_of(model: LoadedModel, batch: list[int], samples: int, seed: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(number of the window, scores (S, R, D) at its pairs) of one batch."""
    ids_BT, mask_BT = model.padded(batch)
    uniform_SBT = torch.ones(samples, *ids_BT.shape)
    for at, number in enumerate(batch):
        random = np.random.default_rng((seed, number))
        length = len(model.windows[number].ids[model.side])
        uniform_SBT[:, at, :length] = torch.from_numpy(1 - random.random((samples, length), np.float32))
    score_SBTD = sampled_scores(model.lm, model.layer, ids_BT, mask_BT, uniform_SBT)
    for at, number in enumerate(batch):
        token_R = torch.from_numpy(model.windows[number].token[model.side])
        yield number, score_SBTD[:, at, token_R.to(score_SBTD.device)]


def check(model: LoadedModel, codes_NF: csr_matrix, own: Directions, seed: int) -> Arrays:
    """Random features of a model among those that fire, in random windows in which they do: `feature`, and nats in
    these windows to second order (`second`) and with the feature subtracted from the stream (`exact`), (K,); `own`: the
    model's own directions."""
    random, first_row = np.random.default_rng((seed, 3)), model.first_row
    codes_NK = codes_NF[:, own.column_K].tocsc()
    alive = np.flatnonzero(np.diff(codes_NK.indptr))
    chosen = np.sort(random.choice(alive, min(_FEATURES, len(alive)), replace=False))
    second_K, exact_K = np.zeros(len(chosen)), np.zeros(len(chosen))
    with progress(f"really removed from {model.side.upper()}", len(chosen), "features") as bar:
        for at, k in enumerate(chosen):
            rows = codes_NK.indices[codes_NK.indptr[k] : codes_NK.indptr[k + 1]]
            fires_in = np.unique(np.searchsorted(first_row, rows, side="right") - 1)
            for number in random.choice(fires_in, min(_WINDOWS, len(fires_in)), replace=False).tolist():
                codes_R1 = codes_NK[first_row[number] : first_row[number + 1], [k]].tocsr()
                ((_, score_SRD),) = scores_of(model, [number], _DRAWS, seed)
                second_K[at] += window_nats(codes_R1, own.seen_by(score_SRD), own.rows_KD[k : k + 1])[1].sum()
                f_R = torch.from_numpy(codes_R1.toarray()[:, 0])
                exact_K[at] += removed_kl(model, number, f_R, own.to_raw(own.rows_KD[k]))
            bar.advance()
    return {"feature": own.column_K[chosen], "second": second_K, "exact": exact_K}


@torch.inference_mode()
def removed_kl(model: LoadedModel, number: int, f_R: torch.Tensor, row_D: torch.Tensor) -> float:
    """KL(unchanged || without f_R times row_D, raw units, at the pairs of a window), summed over all its positions,
    nats."""
    lm, layer = model.lm, model.layer
    ids_1T, mask_1T = model.padded([number])
    at_R = torch.from_numpy(model.windows[number].token[model.side])
    x_RD = residual_after(lm, layer, ids_1T, mask_1T)[0, at_R.to(lm.device)].float()
    x_RD = x_RD - f_R.to(x_RD)[:, None] * row_D.to(x_RD)
    clean_1TV = lm.logits(ids_1T, mask_1T)
    with replace_in_residual(lm, layer, torch.zeros_like(at_R), at_R, x_RD):
        without_1TV = lm.logits(ids_1T, mask_1T)
    every_T = torch.arange(ids_1T.shape[1], device=lm.device)
    zero_T = torch.zeros_like(every_T)
    return float(next_token_losses(without_1TV, clean_1TV, (zero_T, every_T), zero_T)[1].sum())
