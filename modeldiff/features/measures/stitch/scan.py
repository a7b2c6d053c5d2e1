"""The one pass over the pairs that both maps are fitted from, with checkpoints.

Legend: N pairs of a block, K pairs held back, Da, Db widths of the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from modeldiff.console import progress
from modeldiff.linear.quality import within_norm
from modeldiff.linear.ridge import Moments
from modeldiff.sides import SIDES
from modeldiff.splits import PARTS, Stretches
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import temporary_path
from modeldiff.workspace.kept import is_sound, keep
from modeldiff.workspace.stage import CheckpointClock

CHECKPOINT_SECONDS = 60.0
SHIFT = 8192
"""Pairs between the two halves of a permuted pair: further apart than most documents are long."""
_SUMMED = ("fit", "choose")

_Pair = tuple[torch.Tensor, torch.Tensor]


class Permuted:
    """Pairs A's activations with B's of other places: the null. A permutation: all activations are used once.

    Each of A's goes with that of B from `SHIFT` pairs before, and the first of A's with the last of B's, so that
    nothing but `SHIFT` activations of each side is kept.

    Attributes:
        waiting: "head" (K, Da), the first of A's, for the end; "queue" (K, Db), the last of B's, for one of A's.
    """

    def __init__(self, shift: int = SHIFT) -> None:
        self._shift = shift
        self.waiting: dict[str, torch.Tensor] = {}

    def add(self, a_NDa: torch.Tensor, b_NDb: torch.Tensor) -> _Pair:
        head, queue = self.waiting.get("head", a_NDa[:0]), self.waiting.get("queue", b_NDb[:0])
        lacking = self._shift - len(head)
        head, a_NDa = torch.cat([head, a_NDa[:lacking]]) if lacking else head, a_NDa[lacking:]
        queue = torch.cat([queue, b_NDb])
        self.waiting = {"head": head, "queue": queue[len(a_NDa) :]}
        return a_NDa, queue[: len(a_NDa)]

    def rest(self, taken: int) -> _Pair | None:
        """The permuted pairs that are left when all true ones, `taken`, were taken in; None when there were none."""
        if not taken:
            return None
        head, queue = self.waiting["head"], self.waiting["queue"]
        # Row i of the head is row i of all, row i of the queue row taken - K + i: turned so that they are at least half
        # a shift apart, in one way round or the other, also where there are few pairs.
        turn = (3 * len(queue) // 2 - taken) % len(queue)
        return head, queue.roll(-turn, dims=0)


class Scan:
    """What the pass adds up.

    Attributes:
        sums: of both sides and of their products, float64, of activations less the store's mean: `PART.a`, `.b`,
            `.aa`, `.bb`, `.ab` for the pairs fitted on and those that choose the regularisation; `null.ab`: products of
            the permuted pairs fitted on.
        counts: pairs of each part, outliers (of any part) that were left out for their norm, blocks taken in.
    """

    def __init__(self, store: ActivationStore, stretches: Stretches, outlier_factor: float, device: torch.device):
        self._store, self._stretches, self._device = store, stretches, device
        self._outlier_factor = outlier_factor
        self._mean = {side: store.mean[side].to(device) for side in SIDES}
        width = dict(zip(SIDES, store.widths, strict=True))
        names = [f"{part}.{of}" for part in _SUMMED for of in ("a", "b", "aa", "bb", "ab")] + ["null.ab"]
        self.sums = {
            name: torch.zeros([width[side] for side in name.split(".")[1]], dtype=torch.float64, device=device)
            for name in names
        }
        self.counts = dict.fromkeys((*PARTS, "outliers", "blocks"), 0)
        self._permuted = Permuted()

    def moments(self, part: str, direction: str, *, null: bool = False) -> Moments:
        """Moments of the regression `a_to_b` or `b_to_a` on the pairs of a part, or (`null`) on the same activations
        permuted; views, not copies."""
        x, f = ("a", "b") if direction == "a_to_b" else ("b", "a")
        ab_DaDb = self.sums["null.ab" if null else f"{part}.ab"]
        x_D, xx_DD, f_D, ff_DD = (self.sums[f"{part}.{of}"] for of in (x, x + x, f, f + f))
        return Moments(self.counts[part], x_D, xx_DD, f_D, ff_DD.diagonal(), ab_DaDb.T if x == "a" else ab_DaDb)

    def add(self, block: Block) -> None:
        x = {side: self._store.read_side(side, block).to(self._device) for side in SIDES}
        rows_N = np.arange(len(block)) + self._store.first_row[block.shard] + block.start
        part_N = torch.from_numpy(self._stretches.part_of(rows_N)).to(self._device)
        keep_N = within_norm(self._store, x, self._outlier_factor)
        self.counts["outliers"] += int((~keep_N & (part_N >= 0)).sum())
        for number, part in enumerate(PARTS):
            chosen_N = keep_N & (part_N == number)
            self.counts[part] += int(chosen_N.sum())
            if part in _SUMMED:
                a_NDa, b_NDb = self._centred(x["a"][chosen_N], x["b"][chosen_N])
                self.sums[f"{part}.a"] += a_NDa.sum(dim=0)
                self.sums[f"{part}.b"] += b_NDb.sum(dim=0)
                for of, one, other in (("aa", a_NDa, a_NDa), ("bb", b_NDb, b_NDb), ("ab", a_NDa, b_NDb)):
                    self.sums[f"{part}.{of}"].addmm_(one.T, other)
            if part == "fit":
                self._add_null(*self._permuted.add(x["a"][chosen_N], x["b"][chosen_N]))
        self.counts["blocks"] += 1

    def finish(self) -> None:
        """Pair what was left over for the null, after the last block."""
        rest = self._permuted.rest(self.counts["fit"])
        if rest is not None:
            self._add_null(*rest)

    def save(self, path: Path) -> None:
        """Write everything, so that `restore` continues to the same bits."""
        tensors = {**self.sums, **self._permuted.waiting, "counts": torch.tensor(list(self.counts.values()))}
        temporary = temporary_path(path)
        # Clones: a part of a longer tensor, as the queue is, would be refused.
        save_file({name: one.cpu().contiguous().clone() for name, one in tensors.items()}, temporary)
        keep(temporary, path)

    def restore(self, path: Path) -> None:
        found = load_file(path)
        self.counts = dict(zip(self.counts, found.pop("counts").tolist(), strict=True))
        for name, sums in self.sums.items():
            sums.copy_(found.pop(name))
        self._permuted.waiting = {name: one.to(self._device) for name, one in found.items()}

    def _add_null(self, a_NDa: torch.Tensor, b_NDb: torch.Tensor) -> None:
        a_NDa, b_NDb = self._centred(a_NDa, b_NDb)
        self.sums["null.ab"].addmm_(a_NDa.T, b_NDb)

    def _centred(self, a_NDa: torch.Tensor, b_NDb: torch.Tensor) -> _Pair:
        return a_NDa.double() - self._mean["a"], b_NDb.double() - self._mean["b"]


def scan(made: Scan, blocks: Sequence[Block], resume: Path) -> None:
    """Take in the blocks; a scan that finds a checkpoint in `resume` goes on behind it."""
    path = resume / "sums.safetensors"
    if is_sound(path):
        made.restore(path)
    clock = CheckpointClock(CHECKPOINT_SECONDS)
    begun = made.counts["blocks"]
    done = sum(len(block) for block in blocks[:begun])
    with progress("stitch: pass over the activations", sum(map(len, blocks)), "pairs", done=done) as bar:
        for block in blocks[begun:]:
            made.add(block)
            if clock.now():
                with clock.writing():
                    made.save(path)
            bar.advance(len(block))
    made.finish()
