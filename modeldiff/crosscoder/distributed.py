"""One crosscoder over several processes, for dictionaries that do not fit one device.

Each process holds a share of the features of every partition, with their moments, and sees every batch. What is
exchanged in a step is small: candidates for the selection, reconstructions (B, Da + Db) to be summed, a few numbers.
Splitting the batch instead would exchange the gradients of all weights, at the paper's size over a hundred times as
much, and keep a whole dictionary on every device.

Each pair is read by one process (training/data.py), and given to the others as stored.

A process trains an ordinary crosscoder of its own features. Sums over processes are in another order than in one;
beside that, the run is the same.

Legend: B pairs, F features of this process, K entries, D width of one model, Z dead features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import distributed

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.fast.sparse import OneProcess, T
from modeldiff.crosscoder.fast.topk import Scores, Smallest, largest
from modeldiff.crosscoder.model import Both, Crosscoder
from modeldiff.crosscoder.saving import Spans
from modeldiff.crosscoder.units import Measured
from modeldiff.workspace.ranks import Ranks, lost_process

# Entries that a process offers at first, as a multiple of its even share of those that are active.
_OFFER = 1.5
_PARTITIONS = {None: ("A", "shared", "B"), "a": ("A", "shared"), "b": ("shared", "B")}


class Shards(OneProcess):
    """The part of a crosscoder (its whole has `config`) that one of several processes holds, and what they exchange."""

    def __init__(self, ranks: Ranks, config: CrosscoderConfig) -> None:
        self.world, self.rank, self.first = ranks.world, ranks.rank, ranks.first
        self._ranks, self._config = ranks, config

    def _bounds(self, partition: str, rank: int) -> tuple[int, int]:
        """Features of a partition, counted within it, that a process holds."""
        config = self._config
        size = {"A": config.n_a_only, "shared": config.n_shared, "B": config.n_b_only}[partition]
        return size * rank // self.world, size * (rank + 1) // self.world

    def config(self, rank: int) -> CrosscoderConfig:
        a, shared, b = (stop - start for start, stop in (self._bounds(name, rank) for name in ("A", "shared", "B")))
        k = max(1, min(self._config.k, a + shared + b))
        return dataclasses.replace(self._config, n_a_only=a, n_shared=shared, n_b_only=b, k=k)

    def spans(self, name: str, rank: int | None = None) -> Spans | None:
        """Where a process's (this one's) rows of a tensor are in the whole; None: it has all of them. The name is one
        of a parameter, or ends in one ("exp_avg.w_enc_a"), or is "since_active"."""
        rank = self.rank if rank is None else rank
        name = name.rpartition(".")[2]
        if name.startswith("b_dec"):
            return None
        found, first, at = [], 0, 0
        for partition in _PARTITIONS[name[-1] if name.startswith("w_") else None]:
            start, stop = self._bounds(partition, rank)
            found.append((first + start, at, stop - start))
            first += self._bounds(partition, self.world - 1)[1]
            at += stop - start
        return found

    def initialised(self, measured: Mapping[str, Measured], *, seed: int) -> Crosscoder:
        """This process's part of the crosscoder that one process would begin with."""
        part = self.config(self.rank)
        return Crosscoder.initialised(self._config, measured, seed=seed, part=part, spans=self.spans)

    def whole(self, part: Crosscoder) -> Crosscoder | None:
        """All parts as one crosscoder, on the CPU of the first process; elsewhere None."""
        made = Crosscoder(self._config) if self.first else None
        for name, value in part.named_parameters():
            gathered = self._gather(name, value.data)
            if made is not None and gathered is not None:
                made.get_parameter(name).data = gathered
        return made

    def _gather(self, name: str, value: torch.Tensor) -> torch.Tensor | None:
        if self.spans(name) is None:
            return value.cpu() if self.first else None
        if not self.first:
            with lost_process():
                distributed.send(value.detach().cpu().contiguous(), dst=0)
            return None
        rows = [self.spans(name, rank) or [] for rank in range(self.world)]
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

    def all(self, value: T) -> list[T]:
        return self._ranks.all(value)

    def exchange(self, x: Both, owner_B: torch.Tensor) -> Both:
        counts = owner_B.bincount(minlength=self.world).tolist()
        most, place_B = max(counts), torch.empty_like(owner_B)
        # Each process's rows come after those of the one before, in as much room for each.
        place_B[owner_B.argsort(stable=True)] = torch.cat([torch.arange(n) + i * most for i, n in enumerate(counts)])
        whole = []
        for own_MD in x:
            padded = own_MD.new_empty(most, own_MD.shape[1])
            padded[: len(own_MD)] = own_MD
            gathered = own_MD.new_empty(self.world * most, own_MD.shape[1])
            with lost_process():  # as bytes: not every backend knows every dtype
                distributed.all_gather(list(gathered.view(torch.uint8).split(most)), padded.view(torch.uint8))
            whole.append(gathered.index_select(0, place_B.to(gathered.device)))
        return whole[0], whole[1]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return _all_reduce(x.clone(), "SUM")

    def number(self, value: float) -> float:
        return float(_all_reduce(torch.tensor(float(value), dtype=torch.float64), "SUM"))

    def least(self, value: float) -> float:
        return float(_all_reduce(torch.tensor(float(value), dtype=torch.float64), "MIN"))

    def select(self, scores: Scores, count: int, config: CrosscoderConfig) -> tuple[torch.Tensor, Smallest]:
        """The same entries as one process keeps of the whole matrix, also among equal scores."""
        offer = math.ceil(_OFFER * count / self.world)
        while True:
            flat_K, score_K = scores.top(min(offer, count))
            numbers, values, sizes = self._offers(flat_K, score_K, config.n_features)
            order = numbers.argsort()
            kept, kept_score = largest(order, values[order], count)
            smallest = kept_score.min() if len(kept) else None
            if offer >= count or not _cut_off(values, sizes, offer, smallest if len(kept) == count else None):
                first = sum(sizes[: self.rank])
                mine = kept[(kept >= first) & (kept < first + len(flat_K))] - first
                return flat_K[mine], (smallest, None)
            offer = count

    def _offers(
        self, flat_K: torch.Tensor, score_K: torch.Tensor, features: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """All processes' entries: flat indices in the whole matrix, scores, and how many are of each process."""
        rows_K = flat_K // features
        spans = self.spans("b_enc") or []
        number_F = torch.cat([torch.arange(first, first + n) for first, _, n in spans]).to(flat_K.device)
        numbers, sizes = self._all_gather(rows_K * self._config.n_features + number_F[flat_K - rows_K * features])
        return numbers, self._all_gather(score_K, sizes)[0], sizes

    def top_per_pair(self, value_BZ: torch.Tensor, count: int) -> torch.Tensor:
        values = value_BZ.topk(min(count, value_BZ.shape[1]), dim=1, sorted=False).values
        offered = values.new_full((len(values), count), -math.inf)
        offered[:, : values.shape[1]] = values
        gathered = [torch.empty_like(offered) for _ in range(self.world)]
        with lost_process():
            distributed.all_gather(gathered, offered)
        smallest_B1 = torch.cat(gathered, dim=1).topk(count, dim=1).values[:, -1:]
        return torch.where(value_BZ >= smallest_B1, value_BZ, 0.0)

    def _all_gather(self, x_K: torch.Tensor, sizes: list[int] | None = None) -> tuple[torch.Tensor, list[int]]:
        """The processes' vectors, of different lengths, one after the other; and their lengths."""
        with lost_process():
            if sizes is None:
                lengths = [torch.zeros(1, dtype=torch.long, device=x_K.device) for _ in range(self.world)]
                distributed.all_gather(lengths, torch.tensor([len(x_K)], device=x_K.device))
                sizes = [int(length) for length in lengths]
            padded = x_K.new_zeros(max(1, *sizes))
            padded[: len(x_K)] = x_K
            gathered = [torch.empty_like(padded) for _ in range(self.world)]
            distributed.all_gather(gathered, padded)
        return torch.cat([one[:size] for one, size in zip(gathered, sizes, strict=True)]), sizes


def _cut_off(values: torch.Tensor, sizes: list[int], offer: int, smallest: torch.Tensor | None) -> bool:
    """True when a process may hold more entries that belong to the active ones than it offered."""
    return any(
        len(offered) == offer and (smallest is None or bool(offered.min() >= smallest))
        for offered in values.split(sizes)
    )


def _all_reduce(x: torch.Tensor, operation: str) -> torch.Tensor:
    with lost_process():
        distributed.all_reduce(x, op=getattr(distributed.ReduceOp, operation))
    return x
