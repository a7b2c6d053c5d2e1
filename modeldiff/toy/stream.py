"""Pairs of activations drawn from a world, batch after batch, without end and without keeping any (paper 4.1).

The work is in proportion to the concepts that are active, not to all concepts: who is active where is drawn by counts
and places, and activations are sums of the few directions concerned.

Legend: B pairs, C concepts, Da, Db widths, N active (pair, concept) entries of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding_bag

from modeldiff.toy.world import World

# Keeps the batches' random numbers apart from those of the world and of the initial weights of the same seed.
_STREAM = 7919


@dataclass(frozen=True)
class Active:
    """Which concepts are active in a batch, sorted by pair."""

    pairs_N: torch.Tensor
    concepts_N: torch.Tensor
    strengths_N: torch.Tensor


class ConceptStream:
    """Batches of paired activations of a world.

    Args:
        part: streams of the same seed and another part are independent (training, evaluation).
        device: where the batches are made; the numbers differ between devices.
    """

    def __init__(
        self, world: World, *, batch: int, seed: int, part: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.world = world
        self.batch = batch
        self._random = torch.Generator(device).manual_seed((seed * _STREAM + part) * _STREAM + 1)
        self._directions = {side: rows.to(device) for side, rows in world.directions.items()}

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_a (B, Da), x_b (B, Db)), float32."""
        return self.activations(self.draw())

    def pairs(self, least: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batches together, (x_a (N, Da), x_b (N, Db)) with N at least `least`."""
        batches = [self.next() for _ in range(-(-least // self.batch))]
        return torch.cat([x_a for x_a, _ in batches]), torch.cat([x_b for _, x_b in batches])

    def draw(self) -> Active:
        """The active concepts of a batch; no pair is left without one (paper algorithm 2: drawn again until it has)."""
        random, device = self._random, self._random.device
        p_C = self.world.probabilities(random)
        pairs_N, concepts_N = self._occurrences(p_C)
        empty = torch.ones(self.batch, dtype=torch.bool, device=device)
        empty[pairs_N] = False
        while bool(empty.any()):
            rows = empty.nonzero()[:, 0]
            hit = torch.rand(len(rows), len(p_C), generator=random, device=device) < p_C
            which, concepts = hit.nonzero(as_tuple=True)
            pairs_N = torch.cat([pairs_N, rows[which]])
            concepts_N = torch.cat([concepts_N, concepts])
            empty[rows[which]] = False
        order = torch.argsort(pairs_N * len(p_C) + concepts_N)
        strengths_N = torch.rand(len(order), generator=random, device=device)
        return Active(pairs_N[order], concepts_N[order], strengths_N)

    def _occurrences(self, p_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bernoulli(p_C) for every pair: a binomial number of pairs for each concept, then which ones they are.

        Pairs are drawn one by one and those drawn before are drawn again, which makes every set of distinct pairs
        equally likely.
        """
        random, device = self._random, self._random.device
        rows = torch.full_like(p_C, float(self.batch))
        missing_C = torch.binomial(rows, p_C, generator=random).long()
        numbers_C = torch.arange(len(p_C), device=device)
        keys = torch.zeros(0, dtype=torch.long, device=device)
        while bool((missing_C > 0).any()):
            concepts = numbers_C.repeat_interleave(missing_C)
            places = torch.randint(self.batch, (len(concepts),), generator=random, device=device)
            wanted = len(keys) + len(concepts)
            keys, times = torch.cat([keys, concepts * self.batch + places]).unique(return_counts=True)
            if len(keys) == wanted:
                break
            missing_C = torch.bincount((keys // self.batch).repeat_interleave(times - 1), minlength=len(p_C))
        return keys % self.batch, keys // self.batch

    def activations(self, active: Active) -> tuple[torch.Tensor, torch.Tensor]:
        """x = sum over a pair's concepts of strength times direction, plus noise, in either model."""
        counts_B = torch.bincount(active.pairs_N, minlength=self.batch)
        offsets_B = counts_B.cumsum(0) - counts_B
        made = []
        for rows_CD in self._directions.values():
            x_BD = embedding_bag(
                active.concepts_N, rows_CD, offsets_B, mode="sum", per_sample_weights=active.strengths_N
            )
            noise_BD = torch.randn(x_BD.shape, generator=self._random, device=x_BD.device)
            made.append(x_BD.add_(noise_BD, alpha=self.world.spec.noise))
        return made[0], made[1]
