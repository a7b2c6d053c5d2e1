"""What the pass over the pairs adds up: moments for both directions at once, and those of permuted pairs.

Legend: N pairs of a block, K pairs held back, Da, Db widths.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from modeldiff.linear.ridge import Moments

_Pair = tuple[torch.Tensor, torch.Tensor]
SHIFT = 8192
"""Pairs between the two halves of a permuted pair: further apart than most documents are long."""


class JointMoments:
    """Sums over pairs of both sides and of their products, float64: the moments of both directions share them."""

    def __init__(self, width_a: int, width_b: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.n = 0
        self._a_Da, self._b_Db = zeros(width_a), zeros(width_b)
        self._aa_DaDa, self._bb_DbDb = zeros(width_a, width_a), zeros(width_b, width_b)
        self.ab_DaDb = zeros(width_a, width_b)
        """Of the pairs as they are; what permuted pairs give may take its place (see `moments`)."""

    def add(self, a_NDa: torch.Tensor, b_NDb: torch.Tensor) -> None:
        """Take in pairs, float64."""
        self.n += len(a_NDa)
        self._a_Da += a_NDa.sum(dim=0)
        self._b_Db += b_NDb.sum(dim=0)
        self._aa_DaDa.addmm_(a_NDa.T, a_NDa)
        self._bb_DbDb.addmm_(b_NDb.T, b_NDb)
        self.ab_DaDb.addmm_(a_NDa.T, b_NDb)

    def moments(self, direction: str, ab_DaDb: torch.Tensor | None = None) -> Moments:
        """Moments of the regression `a_to_b` or `b_to_a`; they are views, not copies.

        Args:
            ab_DaDb: products of the same activations paired in another way, in place of the true ones.
        """
        ab_DaDb = self.ab_DaDb if ab_DaDb is None else ab_DaDb
        a, b = (self._a_Da, self._aa_DaDa), (self._b_Db, self._bb_DbDb)
        (x_D, xx_DD), (f_D, ff_DD), fx_DD = (a, b, ab_DaDb.T) if direction == "a_to_b" else (b, a, ab_DaDb)
        return Moments(self.n, x_D, xx_DD, f_D, ff_DD.diagonal(), fx_DD)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The sums themselves (`n` apart), by name."""
        names = ("a_Da", "b_Db", "aa_DaDa", "bb_DbDb")
        return {name: getattr(self, f"_{name}") for name in names} | {"ab_DaDb": self.ab_DaDb}


class Permuted:
    """Pairs A's activations with B's of other places: the null. A permutation: all activations are used once.

    Each of A's goes with that of B from `SHIFT` pairs before, and the first of A's with the last of B's, so that
    nothing but `SHIFT` activations of each side is kept.
    """

    def __init__(self, shift: int = SHIFT) -> None:
        self._shift = shift
        self.n = 0
        self.head: torch.Tensor | None = None
        """(K, Da): the first of A's, waiting for the end."""
        self.queue: torch.Tensor | None = None
        """(K, Db): the last of B's, waiting for one of A's."""

    def add(self, a_NDa: torch.Tensor, b_NDb: torch.Tensor) -> _Pair:
        """Take in true pairs; returns permuted ones, as many as were taken in once the head is full."""
        self.n += len(a_NDa)
        self.queue = b_NDb if self.queue is None else torch.cat([self.queue, b_NDb])
        waiting = self._shift - (0 if self.head is None else len(self.head))
        if waiting > 0:
            self.head = a_NDa[:waiting] if self.head is None else torch.cat([self.head, a_NDa[:waiting]])
            a_NDa = a_NDa[waiting:]
        given, self.queue = self.queue[: len(a_NDa)], self.queue[len(a_NDa) :]
        return a_NDa, given

    def rest(self) -> _Pair | None:
        """The permuted pairs that are left when all true ones were taken in; None when there were none."""
        if self.head is None or self.queue is None or not self.n:
            return None
        kept = len(self.queue)
        # Row i of the head is row i of all, row i of the queue row n - kept + i: turned so that they are at least half
        # a shift apart, in one way round or the other, also where there are few pairs.
        turn = (3 * kept // 2 - self.n) % kept
        return self.head, self.queue.roll(-turn, dims=0)

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What waits (`n` apart), by name."""
        found = {"head": self.head, "queue": self.queue}
        return {name: value for name, value in found.items() if value is not None}
