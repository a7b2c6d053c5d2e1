"""What removing features from one model's residual stream does to its predictions, all features in a few passes.

Removing feature i subtracts f_i(t) d_i from the stream at the tokens t of a window's pairs. To second order the KL from
the model's own predictions to what is left of them, summed over the window, is the mean over draws of a_i² / 2 with
a_i = sum_t f_i(t) d_i . score_t (see modeldiff/lm/scores.py; scores have mean zero, so places that follow from one
another need no cross terms). Nothing is measured feature by feature: a window's scores serve all of them.

A direction that the stitch moves here, d M, is not moved: score . (d M) = (score M^T) . d, so the scores are. In memory
are the dictionary, the codes of the sample (sparse), four arrays of a batch's logits, a batch's scores and, of the
features that fire in one window, at most 256 MiB at once: features times (pairs + draws x width).

Legend: S draws, T tokens, D width of this model or of the one that directions come from, N pairs of the sample, R pairs
of a window, F features, K directions that are removed, A those of them that fire in a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from modeldiff.console import progress
from modeldiff.errors import MachineError
from modeldiff.features.windows import Window, padded_windows
from modeldiff.linear.maps import LinearMap
from modeldiff.lm.batches import batches, token_budget
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.scores import sampled_scores
from modeldiff.workspace.files import replace_into, temporary_path

# Fewer tokens than a harvest's batches: the blocks above the layer keep what their backward pass needs. A batch's
# logits have at most 2^27 values (512 MiB in float32), of which four sets are in memory.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 4096, "mps": 2048}
_LOGIT_VALUES = 1 << 27
# Of the arrays of the features of one window, with what multiplying them takes: 256 MiB in float32.
_CHUNK_VALUES = 1 << 25
# What an interrupted run loses at most. Sums are taken window by window, so this changes nothing.
_PART_WINDOWS = 64


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


@dataclass
class Sums:
    """Over the windows in which each of K directions fires, nats."""

    total_K: NDArray[np.float64]
    square_K: NDArray[np.float64]
    windows_K: NDArray[np.int64]

    @classmethod
    def empty(cls, count: int) -> Sums:
        return cls(np.zeros(count), np.zeros(count), np.zeros(count, np.int64))

    def add(self, active_A: NDArray[np.int64], nats_A: NDArray[np.float64]) -> None:
        """Take one window."""
        self.total_K[active_A] += nats_A
        self.square_K[active_A] += nats_A**2
        self.windows_K[active_A] += 1

    def mean_and_error(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(nats per window in which it fires, standard error over windows); NaN for none, and for the error of one."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_K = self.total_K / self.windows_K
            variance_K = np.maximum(self.square_K / self.windows_K - mean_K**2, 0) / (self.windows_K - 1)
        return mean_K, np.sqrt(np.where(self.windows_K > 1, variance_K, np.nan))


def window_nats(
    codes_RK: sparse.csr_matrix, score_SRD: torch.Tensor, rows_KD: torch.Tensor, chunk_values: int = _CHUNK_VALUES
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(directions that fire in a window (A,), what removing each costs in nats (A,)).

    Args:
        score_SRD: at the window's pairs, as `Directions.seen_by` gives them.
        chunk_values: of arrays in memory at once.
    """
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
    lm: LanguageModel,
    layer: int,
    side: str,
    windows: Sequence[Window],
    codes_NF: sparse.csr_matrix,
    groups: dict[str, Directions],
    *,
    samples: int,
    seed: int,
    batch_tokens: int | None,
    resume: Path,
) -> dict[str, Sums]:
    """The sums of each group of directions, removed from one model.

    What decides the tokens drawn in a window depends on the seed and the window's number alone, and is the same in both
    models: what differs between two copies of one model is not the draw.

    Args:
        codes_NF: of the windows' pairs, in order.
        resume: where the state is kept; a run that was interrupted goes on from there.

    Raises:
        MachineError: a batch does not fit into memory.
        InputError: a window is too long for the model.
    """
    budget = batch_tokens or token_budget(lm, logit_values=_LOGIT_VALUES, by_device=_BATCH_TOKENS)
    first_row = np.cumsum([0, *(len(window.rows) for window in windows)])
    order = sorted(range(len(windows)), key=lambda i: (len(windows[i].ids[side]), i))
    begun, sums = read_sums(resume, groups)
    done = sum(len(windows[i].rows) for i in order[:begun])
    with progress(f"impact {side.upper()}", int(first_row[-1]), "pairs", done=done) as bar:
        for start in range(begun, len(order), _PART_WINDOWS):
            part = order[start : start + _PART_WINDOWS]
            for batch in batches([len(windows[i].ids[side]) for i in part], budget):
                numbers = [part[i] for i in batch]
                try:
                    for number, score_SRD in scores_of(lm, layer, side, windows, numbers, samples, seed):
                        codes_RF = codes_NF[first_row[number] : first_row[number + 1]]
                        for name, group in groups.items():
                            seen_SRD = group.seen_by(score_SRD)
                            sums[name].add(*window_nats(codes_RF[:, group.column_K], seen_SRD, group.rows_KD))
                except torch.OutOfMemoryError:
                    raise MachineError(
                        f"a batch of {len(batch)} windows and its backward pass do not fit into the memory of "
                        f"{lm.device} with model {side.upper()} ({lm.name}): use a smaller --batch-tokens"
                    ) from None
                bar.advance(sum(len(windows[i].rows) for i in numbers))
            _save(resume, start + len(part), sums)
    return sums


def scores_of(
    lm: LanguageModel, layer: int, side: str, windows: Sequence[Window], numbers: list[int], samples: int, seed: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(number of the window, scores (S, R, D) at its pairs) of one batch."""
    ids_BT, mask_BT = padded_windows([windows[i] for i in numbers], side)
    uniform_SBT = torch.ones(samples, *ids_BT.shape)
    for at, number in enumerate(numbers):
        random = np.random.default_rng((seed, number))
        length = len(windows[number].ids[side])
        uniform_SBT[:, at, :length] = torch.from_numpy(1 - random.random((samples, length), np.float32))
    score_SBTD = sampled_scores(lm, layer, ids_BT, mask_BT, uniform_SBT)
    for at, number in enumerate(numbers):
        yield number, score_SBTD[:, at, torch.from_numpy(windows[number].token[side]).to(score_SBTD.device)]


def read_sums(path: Path, groups: dict[str, Directions]) -> tuple[int, dict[str, Sums]]:
    """(windows done, their sums) as an interrupted run left them, or the beginning."""
    if not path.exists():
        return 0, {name: Sums.empty(len(group.column_K)) for name, group in groups.items()}
    arrays = load_file(path)
    fields = ("total_K", "square_K", "windows_K")
    return int(arrays["done"][0]), {name: Sums(*(arrays[f"{name}.{field}"] for field in fields)) for name in groups}


def _save(path: Path, done: int, sums: dict[str, Sums]) -> None:
    arrays: dict[str, NDArray[np.generic]] = {"done": np.array([done])}
    for name, one in sums.items():
        arrays |= {f"{name}.{field}": array for field, array in vars(one).items()}
    temporary = temporary_path(path)
    save_file(arrays, temporary)
    replace_into(temporary, path)
