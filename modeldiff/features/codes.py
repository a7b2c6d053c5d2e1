"""Feature activations of a block of pairs, dense and sparse, and a sample of them kept for whole-dictionary questions.

Legend: B pairs of a block, N pairs of the sample, F features, Da, Db widths, E places at which one feature each is
asked for on W pairs, K entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csr_matrix

from modeldiff.catalogue.stored import Arrays
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.inference import ActiveEntries
from modeldiff.crosscoder.fast.sparse import Bags, bag_dot
from modeldiff.crosscoder.fast.topk import indices_of, rows_and_columns
from modeldiff.linear.quality import within_norm
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore, Block

# Values of one dense (B, F) float32 array: 256 MiB. Encoding holds about three of them.
_DENSE_VALUES = 1 << 26
_MIN_ROWS, _MAX_ROWS = 64, 4096


def block_rows(n_features: int) -> int:
    """Pairs encoded at once: a function of the dictionary's size alone, so that sums do not depend on the machine."""
    return max(_MIN_ROWS, min(_MAX_ROWS, _DENSE_VALUES // n_features))


def by_shard(blocks: Sequence[Block], shards: int) -> list[list[Block]]:
    groups: list[list[Block]] = [[] for _ in range(shards)]
    for block in blocks:
        groups[block.shard].append(block)
    return groups


@dataclass(frozen=True)
class SparseCodes:
    """The non-zero feature activations of a block: one entry each, ordered by row, then feature; on the device where
    they were found, or on the CPU. Integers are int32 on the CPU, int64 elsewhere."""

    row: torch.Tensor
    """Row within the block."""
    feature: torch.Tensor
    value: torch.Tensor
    """float32."""

    def where(self, keep_K: torch.Tensor) -> SparseCodes:
        """Some of the entries."""
        at = indices_of(keep_K)
        return SparseCodes(*(one.index_select(0, at) for one in (self.row, self.feature, self.value)))

    def numpy(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(row, feature, value)."""
        row, feature, value = (one.cpu().numpy() for one in (self.row, self.feature, self.value))
        return row.astype(np.int64, copy=False), feature.astype(np.int64, copy=False), value

    def matrix(self, rows: int, n_features: int) -> sparse.csr_matrix:
        """(B, F)."""
        row, feature, value = self.numpy()
        starts = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
        return sparse.csr_matrix((value, feature.astype(np.int32), starts), shape=(rows, n_features))


def pieces(block: Block, n_features: int) -> list[Block]:
    """The block in parts that are encoded at once."""
    step = block_rows(n_features)
    starts = range(block.start, block.stop, step)
    return [Block(block.shard, start, min(start + step, block.stop)) for start in starts]


class Encoder:
    """Codes of the store's pairs, with pairs left out that training leaves out (`outlier_factor`: see
    `within_norm`)."""

    def __init__(
        self, crosscoder: Crosscoder, store: ActivationStore, device: torch.device, outlier_factor: float
    ) -> None:
        self.crosscoder = crosscoder.to(device).eval()
        self.store = store
        self.device = device
        # mps lacks float64 and sums over bags.
        self.sums_on = device if device.type == "cuda" else torch.device("cpu")
        self._active = ActiveEntries(self.crosscoder)
        self._outlier_factor = outlier_factor

    def dense(self, block: Block) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """(f_BF on the device, kept_B): activations of every feature; rows of outliers are zero and not kept."""
        x_a_BDa, x_b_BDb = (x.to(self.device) for x in self.store.read(block))
        kept_B = self.keeps(x_a_BDa, x_b_BDb)
        with torch.inference_mode():
            f_BF = self.crosscoder.encode(x_a_BDa, x_b_BDb, raw=True)
            f_BF[~kept_B] = 0
        return f_BF, kept_B.cpu().numpy()

    def sparse(self, block: Block) -> tuple[SparseCodes, NDArray[np.bool_]]:
        """(codes, kept_B): the non-zero entries of `dense`, which never exists."""
        x_a_BDa, x_b_BDb = (x.to(self.device) for x in self.store.read(block))
        inside_B = self.keeps(x_a_BDa, x_b_BDb)
        # Of an outlier a coarse product would take nearly all features for active.
        x_a_BDa, x_b_BDb = (torch.where(inside_B[:, None], x, 0) for x in (x_a_BDa, x_b_BDb))
        kept_B = inside_B.to(self.sums_on)
        flat_K, value_K = (one.to(self.sums_on) for one in self._active.of(x_a_BDa, x_b_BDb))
        codes = SparseCodes(*rows_and_columns(flat_K, self.crosscoder.n_features), value_K)
        kept = kept_B.cpu().numpy()
        return codes if kept.all() else codes.where(kept_B.index_select(0, codes.row)), kept

    def matrix(
        self, blocks: Iterable[Block], advance: Callable[[float], None] = lambda _: None
    ) -> tuple[csr_matrix, NDArray[np.bool_]]:
        """(codes (N, F) of all pairs of these blocks, those of outliers zero; (N,) which are no outliers). `advance`
        is told of pairs that were encoded."""
        codes, kept = [], []
        for piece in (piece for block in blocks for piece in pieces(block, self.crosscoder.n_features)):
            found, kept_B = self.sparse(piece)
            codes.append(found.matrix(len(piece), self.crosscoder.n_features))
            kept.append(kept_B)
            advance(len(piece))
        return sparse.vstack(codes, format="csr"), np.concatenate(kept)

    def at(self, block: Block, feature_E: NDArray[np.int64], row_EW: NDArray[np.int64]) -> NDArray[np.float32]:
        """(E, W): the activation of feature_E[e] on the pairs row_EW[e] of the block; 0 where that is negative. As in
        `dense`, up to the rounding of a product, without working out the others."""
        device, crosscoder = self.sums_on, self.crosscoder
        raw = dict(zip(SIDES, self.store.read(block), strict=True))
        kept_B = self.keeps(raw["a"], raw["b"]).to(device)
        inside_EW = row_EW >= 0
        start_E1 = np.concatenate([[0], inside_EW.sum(axis=1).cumsum()])
        bags = Bags(*(torch.from_numpy(one).to(device) for one in (row_EW[inside_EW], start_E1)))
        feature = torch.from_numpy(feature_E).to(device)
        weights_F = crosscoder.score_weights()
        with torch.no_grad():
            pre_K = crosscoder.b_enc.to(device)[feature][bags.bag_K]
            for side in SIDES:
                encoder_ED = self._encoder_rows(side, feature.to(crosscoder.b_enc.device)).to(device)
                pre_K += bag_dot(encoder_ED, crosscoder.config.normalised(side, raw[side].to(device).float()), bags)
            score_K = pre_K if weights_F is None else pre_K * weights_F.to(device)[feature][bags.bag_K]
            active_K = (score_K > crosscoder.thresholds().to(device)[feature][bags.bag_K]) & kept_B[bags.index_K]
            value_K = torch.where(active_K, pre_K, 0.0)
        value_EW = np.zeros(row_EW.shape, np.float32)
        value_EW[inside_EW] = value_K.cpu().numpy()
        return value_EW

    def _encoder_rows(self, side: str, feature: torch.Tensor) -> torch.Tensor:
        """(E, D): what these features multiply one side's normalised activations by; 0 for those that do not see it."""
        crosscoder = self.crosscoder
        weights = crosscoder.encoder(side).detach()
        seen, shared = crosscoder.sees(side), crosscoder.slices["shared"]
        if not len(weights):
            return weights.new_zeros(len(feature), weights.shape[1])
        share = torch.where((feature >= shared.start) & (feature < shared.stop), crosscoder.encoder_share, 1.0)
        share *= (feature >= seen.start) & (feature < seen.stop)
        return weights[(feature - seen.start).clamp(0, len(weights) - 1)] * share[:, None]

    def unit(self) -> float:
        """A power of two, of which the activations of any feature on all pairs, added up, are less than 2^62."""
        largest = max(0.0, float(self.crosscoder.b_enc.detach().max()))
        for side, info in self.store.info.sides.items():
            # The mean norm is at most this.
            norm = torch.tensor(0.99 * info.norm_quantiles["0.99"] + 0.01 * info.norm_quantiles["1"])
            rows = self.crosscoder.encoder(side).detach().norm(dim=1)
            largest += float(self.crosscoder.config.normalised(side, norm)) * float(rows.max() if len(rows) else 0.0)
        return 2.0 ** (math.frexp(largest)[1] + self.store.pairs.bit_length() - 62)

    def keeps(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> torch.Tensor:
        """(B,) bool: which of these raw pairs are not outliers (see `within_norm`)."""
        return within_norm(self.store, {"a": x_a_BDa, "b": x_b_BDb}, self._outlier_factor)


@dataclass(frozen=True)
class CodeSample:
    codes_NF: sparse.csr_matrix
    """float32."""
    rows_N: NDArray[np.int64]
    """Row of each pair in the whole store."""


def codes_arrays(codes_NF: csr_matrix) -> Arrays:
    """Codes as arrays for a file."""
    return {name: getattr(codes_NF, name) for name in ("data", "indices", "indptr")}


def joined_codes(parts: Sequence[Arrays], n_features: int) -> csr_matrix:
    """(N, F) float32: the codes of several files, one after the other."""
    codes = [
        csr_matrix((part["data"], part["indices"], part["indptr"]), shape=(len(part["indptr"]) - 1, n_features))
        for part in parts
    ]
    return sparse.vstack(codes, format="csr", dtype=np.float32)
