"""The sparse code of a batch: its active entries, sums over them, and a training batch there and back.

What is summed over a pair's entries (reconstructions) wants them pair by pair, what is summed over a feature's
(gradients of weights) feature by feature. Values come in the first order, as they were selected; their gradients in the
second. One product stays dense, the encoder's. The dense formula with autograd is the reference of the tests.

On a GPU the sums run in Triton where it is installed, on everything else by torch's own functions;
MODELDIFF_KERNELS=torch in the environment asks for the latter everywhere.

Legend: K entries, B pairs, F features, Fm features that one model has, G bags, N rows, D, Da, Db widths; B1 = B + 1 and
so on.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.designated import pooled_topk
from modeldiff.crosscoder.fast.product import multiply_into
from modeldiff.crosscoder.fast.topk import Scores, Smallest, indices_of, rows_and_columns
from modeldiff.crosscoder.model import Both, Crosscoder
from modeldiff.sides import SIDES

# Values of a sum that are made at once on the CPU, 1 MiB.
_PIECE_VALUES = 1 << 18

T = TypeVar("T")


@dataclass
class Bags:
    """Entries in bags: bag g holds the entries start_G1[g] <= k < start_G1[g + 1], entry k stands for row `index_K[k]`.

    Attributes:
        index_K: int64, or int32 on the CPU. For the kernels of a GPU, an entry whose index is no row counts nothing.
        start_G1: likewise; ascending, from 0 to K.
    """

    index_K: torch.Tensor
    start_G1: torch.Tensor

    @cached_property
    def bag_K(self) -> torch.Tensor:
        """The bag that each entry is in, ascending."""
        numbers_G = torch.arange(len(self), device=self.start_G1.device)
        return numbers_G.repeat_interleave(self.start_G1.diff(), output_size=len(self.index_K))

    def __len__(self) -> int:
        return self.start_G1.shape[0] - 1

    def part(self, which: slice) -> tuple[slice, Bags]:
        """The entries of neighbouring bags, and these bags alone. A GPU is waited for."""
        if which.stop - which.start == len(self):
            return slice(None), self
        start_G1 = self.start_G1[which.start : which.stop + 1]
        entries = slice(int(start_G1[0]), int(start_G1[-1]))
        return entries, Bags(self.index_K[entries], start_G1 - entries.start)


def bag_sum(
    rows_ND: torch.Tensor,
    bags: Bags,
    weight_K: torch.Tensor,
    out_GD: torch.Tensor | None = None,
    some: slice | None = None,
) -> torch.Tensor:
    """(G, D), float32: out[g] = sum over the bag's entries k of weight_K[k] rows_ND[index_K[k]]; 0 for an empty bag.

    Decoding (bags are pairs, rows those of a decoder) and the gradients of weights (bags are features, rows are
    activations or errors) are this. No autograd. `out_GD` is memory for it. G are all bags, or those of `some`.
    """
    some = some or slice(0, len(bags))
    if out_GD is None:
        out_GD = rows_ND.new_empty(some.stop - some.start, rows_ND.shape[1], dtype=torch.float32)
    if len(bags.index_K) and (kernels := _kernels(rows_ND.device)):
        return kernels.bag_sum(rows_ND, bags, weight_K, out_GD, some)
    for which, entries, piece in _pieces(bags, rows_ND, some):
        out_GD[which] = _bag_sum(rows_ND, piece, weight_K[entries].detach())
    return out_GD


def bag_dot(
    left_GD: torch.Tensor,
    rows_ND: torch.Tensor,
    bags: Bags,
    weight_K: torch.Tensor | None = None,
    sum_GD: torch.Tensor | None = None,
    some: slice | None = None,
    dot_K: torch.Tensor | None = None,
) -> torch.Tensor:
    """(K,), float32: the products of left_GD[bag_K[k]] and rows_ND[index_K[k]], added to `dot_K` if it is given; and
    `bag_sum` into `sum_GD`, if given. Left has a row for each bag, or each of `some`; for the entries of the others
    nothing is added.

    With the gradients of the reconstructions as rows and features as bags, the sum is the gradient of a decoder, and
    the products, with the decoder as `left`, are that of the code. No autograd.
    """
    some = some or slice(0, len(bags))
    weight_K = rows_ND.new_ones(len(bags.index_K), dtype=torch.float32) if weight_K is None else weight_K
    dot_K = torch.zeros_like(weight_K) if dot_K is None else dot_K
    if len(bags.index_K) and (kernels := _kernels(rows_ND.device)):
        if sum_GD is not None:
            kernels.bag_sum(rows_ND, bags, weight_K, sum_GD, some)
        return kernels.bag_dot(left_GD, rows_ND, bags, some, dot_K)
    for which, entries, piece in _pieces(bags, rows_ND, some):
        with torch.enable_grad():  # the products are the gradient of the sum in its weights
            weight = weight_K[entries].detach().requires_grad_()
            made = _bag_sum(rows_ND, piece, weight)
            dot_K[entries] += torch.autograd.grad(made, weight, left_GD[which].detach())[0]
        if sum_GD is not None:
            sum_GD[which] = made.detach()
    return dot_K


def _pieces(bags: Bags, rows_ND: torch.Tensor, some: slice) -> Iterator[tuple[slice, slice, Bags]]:
    """Which bags, counted from the first of `some`, their entries, these bags alone: on the CPU so many that their sums
    are in its cache when copied."""
    step = max(1, _PIECE_VALUES // rows_ND.shape[1] if rows_ND.device.type == "cpu" else len(bags))
    for first in range(some.start, some.stop, step):
        last = min(first + step, some.stop)
        yield slice(first - some.start, last - some.start), *bags.part(slice(first, last))


def _bag_sum(rows_ND: torch.Tensor, bags: Bags, weight_K: torch.Tensor) -> torch.Tensor:
    return embedding_bag(
        bags.index_K, rows_ND.detach(), bags.start_G1, mode="sum", per_sample_weights=weight_K, include_last_offset=True
    )


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Kernels for a device, or None for torch's own functions. Imported on first use: not every machine has Triton."""
    if device.type != "cuda" or os.environ.get("MODELDIFF_KERNELS") == "torch":
        return None
    try:
        from modeldiff.crosscoder.fast import triton_bags
    except ImportError:
        return None
    return triton_bags


class Entries:
    """Active entries of a code. Of one feature, they are in the order of the pairs; of one pair, in that of the
    features. All numbers are int32 on the CPU, int64 elsewhere.

    Attributes:
        row_K, column_K: the entry's pair and feature, pair by pair.
        by_feature_K: values listed pair by pair, taken at these indices, are feature by feature.
        bags: of the entries feature by feature: a bag is a feature, an index a pair.
    """

    def __init__(self, flat_K: torch.Tensor, pairs: int, features: int) -> None:
        """`flat_K`: int64, ascending: row * F + column of each entry."""
        self.pairs, self.features = pairs, features
        self.row_K, self.column_K = rows_and_columns(flat_K, features)
        self._start_B1 = _starts(self.row_K, pairs)
        self.by_feature_K = _ascending(self.column_K, features)
        pair_K, feature_K = (one.index_select(0, self.by_feature_K) for one in (self.row_K, self.column_K))
        self.bags = Bags(pair_K, _starts(feature_K, features))
        self.bags.bag_K = feature_K

    def of_pairs(self, seen: slice) -> tuple[torch.Tensor | slice, Bags]:
        """The indices of the entries of neighbouring features among those listed pair by pair, and bags of them: a bag
        is a pair, an index a feature, counted from the first of them. For kernels, which skip the others, all."""
        if (seen.start == 0 and seen.stop == self.features) or _kernels(self.column_K.device):
            return slice(None), Bags(self.column_K - seen.start if seen.start else self.column_K, self._start_B1)
        inside_K = (self.column_K >= seen.start) & (self.column_K < seen.stop)
        indices = indices_of(inside_K).to(self.column_K.dtype)
        rows_K, columns_K = self.row_K.index_select(0, indices), self.column_K.index_select(0, indices)
        return indices, Bags(columns_K - seen.start, _starts(rows_K, self.pairs))


def _ascending(number_K: torch.Tensor, count: int) -> torch.Tensor:
    """The stable order of numbers below `count`. On the CPU by numpy, which sorts 16 bits several times as fast."""
    if number_K.device.type != "cpu":
        return number_K.int().sort(stable=True).indices
    numbers = number_K.numpy().astype(np.uint16 if count <= 1 << 16 else np.int32)
    return torch.from_numpy(numbers.argsort(kind="stable").astype(np.int32))


def _starts(number_K: torch.Tensor, count: int) -> torch.Tensor:
    """Of ascending numbers below `count`: where each begins, and where the last one ends."""
    numbers = torch.arange(count + 1, dtype=number_K.dtype, device=number_K.device)
    return torch.searchsorted(number_K, numbers, out_int32=number_K.dtype == torch.int32)


class OneProcess:
    """What the processes of a run exchange in a step: with one, nothing (several: distributed.py)."""

    world, rank, first = 1, 0, True
    """How many there are, this one's number, and whether it is the one that decides and speaks."""

    def select(self, scores: Scores, count: int, config: CrosscoderConfig) -> tuple[torch.Tensor, Smallest]:
        """This process's flat indices, ascending, of the `count` active entries of a batch, and the smallest scores
        among them all."""
        if config.n_designated:
            return pooled_topk(scores, count, config)
        flat_K, smallest = scores.topk(count)
        return flat_K, (smallest, None)

    def top_per_pair(self, value_BZ: torch.Tensor, count: int) -> torch.Tensor:
        """The values, 0 where one is not among its pair's `count` largest ones over all processes."""
        if count >= value_BZ.shape[1]:
            return value_BZ
        values, at = value_BZ.topk(count, dim=1, sorted=False)
        return torch.zeros_like(value_BZ).scatter(1, at, values)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def number(self, value: float) -> float:
        """Sum over the processes."""
        return value

    def least(self, value: float) -> float:
        return value

    def all(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        return [value]

    def exchange(self, x: Both, _owner_B: torch.Tensor) -> Both:
        """Matrices with all rows of a batch, to which each process gives those that it has, in their order; `owner_B`
        (int64, CPU): which process has each row."""
        return x


@dataclass(frozen=True)
class Pass:
    """What became of a batch."""

    entries: Entries
    f_K: torch.Tensor
    """Values of the active entries, pair by pair."""
    smallest: Smallest
    xhat: Both
    """Reconstructions (B, Da), (B, Db)."""
    spare: Both
    """Memory of the same shapes. Like the reconstructions it lasts until the next batch."""


class SparseStep:
    """Runs batches, activations in normalised units, with work only at the active entries and without autograd."""

    def __init__(self, crosscoder: Crosscoder, processes: OneProcess) -> None:
        self._crosscoder, self._processes = crosscoder, processes
        self._memory = torch.empty(0, device=crosscoder.b_enc.device)

    @torch.no_grad()
    def forward(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, count: int) -> Pass:
        """Select `count` active entries, and reconstruct from them."""
        scores = self._scores(x_a_BDa, x_b_BDb)
        flat_K, smallest = self._processes.select(scores, count, self._crosscoder.config)
        entries = Entries(flat_K, len(x_a_BDa), self._crosscoder.n_features)
        f_K = scores.pre(flat_K)
        del scores, flat_K  # early in a run many entries are active; the memory of the scores is used again
        a, b, *spare = self._matrices(len(x_a_BDa), *[x_a_BDa.shape[1], x_b_BDb.shape[1]] * 2)
        return Pass(entries, f_K, smallest, self.decode(entries, f_K, (a, b)), (spare[0], spare[1]))

    @torch.no_grad()
    def decode(self, entries: Entries, f_K: torch.Tensor, out: Both | tuple[None, None] = (None, None)) -> Both:
        """Reconstructions; `out`: memory for them."""
        crosscoder, xhat = self._crosscoder, []
        for side, out_BD in zip(SIDES, out, strict=True):
            indices, bags = entries.of_pairs(crosscoder.sees(side))
            xhat_BD = self._processes.sum(bag_sum(crosscoder.decoder(side), bags, f_K[indices], out_BD))
            xhat.append(xhat_BD.add_(crosscoder.decoder_bias(side)))
        return xhat[0], xhat[1]

    @torch.no_grad()
    def backward(self, x: Both, done: Pass, g: Both) -> None:
        """Set `grad` of every parameter, from a loss's gradients in the two reconstructions."""
        crosscoder, bags = self._crosscoder, done.entries.bags
        f_K = done.f_K.index_select(0, done.entries.by_feature_K)
        g_K = torch.zeros_like(f_K)
        for side, g_BD in zip(SIDES, g, strict=True):
            crosscoder.decoder_bias(side).grad = g_BD.sum(dim=0)
            w_dec = crosscoder.decoder(side)
            bag_dot(w_dec, g_BD, bags, f_K, _gradient(w_dec), crosscoder.sees(side), g_K)
        crosscoder.b_enc.grad = torch.segment_reduce(g_K, "sum", offsets=bags.start_G1, initial=0.0)
        if crosscoder.encoder_share != 1:
            shared = crosscoder.slices["shared"]
            shared_K = (bags.bag_K >= shared.start) & (bags.bag_K < shared.stop)
            g_K *= torch.where(shared_K, crosscoder.encoder_share, 1.0)
        for side, x_BD in zip(SIDES, x, strict=True):
            bag_sum(x_BD, bags, g_K, _gradient(crosscoder.encoder(side)), crosscoder.sees(side))

    def _scores(self, x_a: torch.Tensor, x_b: torch.Tensor) -> Scores:
        crosscoder = self._crosscoder
        (pre_BF,) = self._matrices(len(x_a), crosscoder.n_features)
        multiply_into(pre_BF, x_a, x_b, crosscoder)
        return Scores(pre_BF, crosscoder.b_enc, crosscoder.score_weights())

    def _matrices(self, rows: int, *columns: int) -> tuple[torch.Tensor, ...]:
        """Float32 matrices, side by side in memory that lasts, over those of the last call."""
        sizes = [rows * n for n in columns]
        if self._memory.numel() < sum(sizes):
            self._memory = _lasting(sum(sizes), self._memory.device)
        return tuple(one.view(rows, n) for one, n in zip(self._memory[: sum(sizes)].split(sizes), columns, strict=True))


def _gradient(w_FD: torch.Tensor) -> torch.Tensor:
    """The memory of a weight's gradient, which is written over that of the step before."""
    if w_FD.grad is None:
        w_FD.grad = _lasting(w_FD.numel(), w_FD.device).view_as(w_FD)
    return w_FD.grad


def _lasting(values: int, device: torch.device) -> torch.Tensor:
    """Float32 memory to be used in every step: new memory is slow, since the system clears each page of it. On the CPU
    the pages are large ones, where it has them: with small ones the encoder's product takes a tenth longer."""
    if device.type != "cpu" or not values:
        return torch.empty(values, device=device)
    memory = mmap.mmap(-1, 4 * values, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # another system than Linux, or one without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)
