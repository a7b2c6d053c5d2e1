"""One crosscoder over several processes, for dictionaries that do not fit one device.

Each rank holds a share of the features of every partition, with their moments, and sees every batch. What is exchanged
in a step is small: candidates for the selection, reconstructions (B, Da + Db) to be summed, a few numbers. Splitting
the batch instead would exchange the gradients of all weights, at the paper's size over a hundred times as much, and
keep a whole dictionary on every device.

A rank trains an ordinary crosscoder of its own features. Sums over ranks are in another order than in one process;
beside that, the run is the same.

Legend: B pairs, F features of this rank, K entries, D width of one model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.fast.scores import Scores, batch_topk, largest
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.selection import pooled_topk
from modeldiff.workspace.ranks import Ranks, lost_process

# Entries that a rank offers at first, as a multiple of its even share of those that are kept.
_OFFER = 1.5
_PARTITIONS = {None: ("A", "shared", "B"), "a": ("A", "shared"), "b": ("shared", "B")}
Spans = list[tuple[int, int, int]]
"""(first row in the whole tensor, first row in this rank's, number of rows) of each piece."""


class Shards:
    """The part of a crosscoder that one rank holds, and what the ranks exchange.

    With one process all of it is the identity: nothing is copied or sent.

    Args:
        ranks: the processes of the run.
        config: of the whole crosscoder.
    """

    def __init__(self, ranks: Ranks, config: CrosscoderConfig) -> None:
        self.ranks = ranks
        self.whole_config = config

    @property
    def alone(self) -> bool:
        """True in a run of one process."""
        return self.ranks.world == 1

    # -- which features are whose

    def _bounds(self, partition: str, rank: int) -> tuple[int, int]:
        """Features of a partition, counted within it, that a rank holds: first, and one after the last."""
        config = self.whole_config
        size = {"A": config.n_a_only, "shared": config.n_shared, "B": config.n_b_only}[partition]
        return size * rank // self.ranks.world, size * (rank + 1) // self.ranks.world

    def config(self, rank: int) -> CrosscoderConfig:
        """Of a rank's own crosscoder."""
        sizes = {name: stop - start for name in ("A", "shared", "B") for start, stop in [self._bounds(name, rank)]}
        k = max(1, min(self.whole_config.k, sum(sizes.values())))
        return dataclasses.replace(
            self.whole_config, n_a_only=sizes["A"], n_shared=sizes["shared"], n_b_only=sizes["B"], k=k
        )

    def spans(self, name: str, rank: int) -> Spans | None:
        """Where a rank's rows of a tensor are in the whole one; None: every rank has all of it.

        Args:
            name: a parameter of the crosscoder, or what belongs to one ("exp_avg.w_enc_a"), or `since_active`.
        """
        name = name.rpartition(".")[2]
        if name.startswith("b_dec"):
            return None
        side = name[-1] if name.startswith("w_") else None
        found, first, at = [], 0, 0
        for partition in _PARTITIONS[side]:
            start, stop = self._bounds(partition, rank)
            found.append((first + start, at, stop - start))
            first += self._bounds(partition, self.ranks.world - 1)[1]
            at += stop - start
        return found

    def part(self, whole: Crosscoder) -> Crosscoder:
        """This rank's crosscoder, with its rows of the weights. Alone: the whole itself."""
        if self.alone:
            return whole
        made = Crosscoder(self.config(self.ranks.rank))
        with torch.no_grad():
            for name, target in made.named_parameters():
                take_rows(target, whole.get_parameter(name), self.spans(name, self.ranks.rank))
        return made

    def whole(self, part: Crosscoder) -> Crosscoder | None:
        """All ranks' parts as one crosscoder, on rank 0 (elsewhere None), on the CPU. Alone: the part itself."""
        if self.alone:
            return part
        made = Crosscoder(self.whole_config) if self.ranks.first else None
        for name, value in part.named_parameters():
            gathered = self.gather(name, value.data)
            if made is not None and gathered is not None:
                made.get_parameter(name).data = gathered
        return made

    def gather(self, name: str, value: torch.Tensor) -> torch.Tensor | None:
        """The whole tensor, on the CPU, on rank 0; elsewhere None. Every rank calls it."""
        if self.alone:
            return value.cpu()
        from torch import distributed

        spans = self.spans(name, self.ranks.rank)
        if spans is None:
            return value.cpu() if self.ranks.first else None
        if not self.ranks.first:
            with lost_process():
                distributed.send(value.detach().cpu().contiguous(), dst=0)
            return None
        rows = [self.spans(name, rank) or [] for rank in range(self.ranks.world)]
        whole = value.new_empty((sum(n for spans in rows for _, _, n in spans), *value.shape[1:]), device="cpu")
        for rank, spans in enumerate(rows):
            piece = value.cpu()
            if rank:
                piece = value.new_empty((sum(n for _, _, n in spans), *value.shape[1:]), device="cpu")
                with lost_process():
                    distributed.recv(piece, src=rank)
            for first, at, n in spans:
                whole[first : first + n] = piece[at : at + n]
        return whole

    # -- what a step exchanges

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, with autograd: the gradient of a rank's addend is that of the sum."""
        if self.alone:
            return x
        out: torch.Tensor = _Sum.apply(x)
        return out

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, without autograd."""
        return x if self.alone else _all_reduce(x.detach().clone(), "SUM")

    def number(self, value: float) -> float:
        """Sum of a number over the ranks."""
        return value if self.alone else float(_all_reduce(torch.tensor(float(value), dtype=torch.float64), "SUM"))

    def least(self, value: float) -> float:
        """The smallest of the ranks' numbers."""
        return value if self.alone else float(_all_reduce(torch.tensor(float(value), dtype=torch.float64), "MIN"))

    def select(self, scores: Scores, count: int) -> tuple[torch.Tensor, tuple[float | None, float | None]]:
        """This rank's flat indices, ascending, of the `count` selected entries of a batch, and the smallest scores that
        were selected (see `pooled_topk`)."""
        if self.alone:
            return pooled_topk(scores, count, self.whole_config)
        flat_K, smallest = self.top(scores, count)
        return flat_K, (smallest, None)

    def top(self, scores: Scores, count: int) -> tuple[torch.Tensor, float | None]:
        """This rank's flat indices, ascending, among the `count` largest scores of all ranks; the smallest of those.

        The same entries as `batch_topk` keeps of the whole matrix, also among equal scores.
        """
        offer = math.ceil(_OFFER * count / self.ranks.world)
        while True:
            flat_K, score_K = batch_topk(scores, min(offer, count))
            numbers, values, sizes = self._offers(flat_K, score_K)
            order = numbers.argsort()
            kept, kept_score = largest(order, values[order], count)
            smallest = float(kept_score.min()) if len(kept) else None
            if offer >= count or not self._cut_off(values, sizes, offer, smallest if len(kept) == count else None):
                first = sum(sizes[: self.ranks.rank])
                mine = kept[(kept >= first) & (kept < first + len(flat_K))] - first
                return flat_K[mine], smallest
            offer = count

    def _offers(self, flat_K: torch.Tensor, score_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """All ranks' entries: flat indices in the whole matrix, scores, and how many are of each rank."""
        config = self.config(self.ranks.rank)
        rows_K = flat_K // config.n_features
        spans = self.spans("b_enc", self.ranks.rank) or []
        number_F = torch.cat([torch.arange(first, first + n) for first, _, n in spans]).to(flat_K.device)
        numbers_K = rows_K * self.whole_config.n_features + number_F[flat_K - rows_K * config.n_features]
        numbers, sizes = _all_gather(numbers_K, self.ranks.world)
        return numbers, _all_gather(score_K, self.ranks.world, sizes)[0], sizes

    def _cut_off(self, values: torch.Tensor, sizes: list[int], offer: int, smallest: float | None) -> bool:
        """True when a rank may hold more entries that belong to the kept ones than it offered."""
        at = 0
        for size in sizes:
            if size == offer and (smallest is None or float(values[at : at + size].min()) >= smallest):
                return True
            at += size
        return False

    def top_per_pair(self, value_BZ: torch.Tensor, count: int) -> torch.Tensor:
        """The same, 0 where a value is not among its pair's `count` largest ones over all ranks; with autograd."""
        width = value_BZ.shape[1]
        if self.alone and count >= width:
            return value_BZ
        values, places = value_BZ.topk(min(count, width), dim=1, sorted=False)
        if self.alone:
            return torch.zeros_like(value_BZ).scatter(1, places, values)
        from torch import distributed

        offered = values.new_full((len(values), count), -math.inf)
        offered[:, : values.shape[1]] = values.detach()
        gathered = [torch.empty_like(offered) for _ in range(self.ranks.world)]
        with lost_process():
            distributed.all_gather(gathered, offered)
        smallest_B1 = torch.cat(gathered, dim=1).topk(count, dim=1).values[:, -1:]
        return torch.where(value_BZ >= smallest_B1, value_BZ, 0.0)


def take_rows(target: torch.Tensor, whole: Any, spans: Spans | None) -> None:
    """Copy a rank's rows of a tensor (or of a slice of a safetensors file) into its own."""
    if spans is None:
        target.copy_(whole[:])
        return
    for first, at, n in spans:
        if n:
            target[at : at + n] = whole[first : first + n]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return _all_reduce(x.detach().clone(), "SUM")

    @staticmethod
    def backward(_ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        # The loss is the same number on every rank, not a part of it.
        return grads[0]


def _all_reduce(x: torch.Tensor, operation: str) -> torch.Tensor:
    from torch import distributed

    with lost_process():
        distributed.all_reduce(x, op=getattr(distributed.ReduceOp, operation))
    return x


def _all_gather(x_K: torch.Tensor, world: int, sizes: list[int] | None = None) -> tuple[torch.Tensor, list[int]]:
    """The ranks' vectors, of different lengths, one after the other; and their lengths."""
    from torch import distributed

    with lost_process():
        if sizes is None:
            lengths = [torch.zeros(1, dtype=torch.long, device=x_K.device) for _ in range(world)]
            distributed.all_gather(lengths, torch.tensor([len(x_K)], device=x_K.device))
            sizes = [int(length) for length in lengths]
        padded = x_K.new_zeros(max(1, *sizes))
        padded[: len(x_K)] = x_K
        gathered = [torch.empty_like(padded) for _ in range(world)]
        distributed.all_gather(gathered, padded)
    return torch.cat([one[:size] for one, size in zip(gathered, sizes, strict=True)]), sizes
