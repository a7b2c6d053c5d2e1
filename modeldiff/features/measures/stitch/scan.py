"""The one pass over the pairs that both maps are fitted from, with checkpoints.

Legend: N pairs of a block, D width of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from modeldiff.console import progress
from modeldiff.crosscoder.training.loop import CheckpointClock
from modeldiff.features.measures.stitch.sums import JointMoments, Permuted
from modeldiff.linear.quality import norm_limits, within
from modeldiff.linear.stitch import PARTS, Stretches
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import replace_into, temporary_path

CHECKPOINT_SECONDS = 60.0
_CHECKPOINT = "sums.safetensors"
_SUMMED = ("fit", "choose")
_COUNTS = ("blocks", "outliers", "permuted", *_SUMMED)


class Scan:
    """What the pass adds up.

    Attributes:
        sums: moments of the pairs fitted on, and of those that choose the regularisation; activations less the store's
            mean.
        null_DaDb: products of the permuted pairs of the part fitted on.
        blocks: blocks taken in so far; outliers: pairs of any part left out for their norm.
    """

    def __init__(self, store: ActivationStore, stretches: Stretches, outlier_factor: float, device: torch.device):
        self._store = store
        self._stretches = stretches
        self._limits = norm_limits(store, outlier_factor)
        self._device = device
        self._mean = {side: store.mean[side].to(device) for side in SIDES}
        self.sums = {part: JointMoments(*store.widths, device) for part in _SUMMED}
        self.null_DaDb = torch.zeros_like(self.sums["fit"].ab_DaDb)
        self._permuted = Permuted()
        self.blocks = 0
        self.outliers = 0
        self._report: list[torch.Tensor] = []

    @property
    def report(self) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
        """(rows of the store, by side their norms) of the pairs that are reported on, outliers left out."""
        joined = torch.cat([torch.zeros(0, 3, dtype=torch.float64), *self._report]).numpy()
        return joined[:, 0].astype(np.int64), {"a": joined[:, 1], "b": joined[:, 2]}

    def add(self, block: Block) -> None:
        """Read a block and take it in."""
        x = {side: self._store.read_side(side, block).to(self._device) for side in SIDES}
        rows_N = np.arange(len(block)) + self._store.first_row[block.shard] + block.start
        part_N = torch.from_numpy(self._stretches.part_of(rows_N)).to(self._device)
        keep_N = within(x, self._limits, self._store)
        self.outliers += int((~keep_N & (part_N >= 0)).sum())
        chosen = {name: keep_N & (part_N == number) for number, name in enumerate(PARTS)}
        for name in _SUMMED:
            self.sums[name].add(*self._centred(*(x[side][chosen[name]] for side in SIDES)))
        self._add_null(*self._permuted.add(*(x[side][chosen["fit"]] for side in SIDES)))
        report_N = chosen["report"].cpu()
        norms = [x[side][report_N.to(self._device)].double().norm(dim=1).cpu() for side in SIDES]
        self._report.append(torch.stack([torch.from_numpy(rows_N)[report_N].double(), *norms], dim=1))
        self.blocks += 1

    def finish(self) -> None:
        """Pair what was left over for the null, after the last block."""
        rest = self._permuted.rest()
        if rest is not None:
            self._add_null(*rest)

    def save(self, path: Path) -> None:
        """Write everything, so that `restore` continues to the same bits."""
        tensors = {f"{part}.{name}": one for part in _SUMMED for name, one in self.sums[part].tensors().items()}
        tensors |= {f"permuted.{name}": one for name, one in self._permuted.tensors().items()}
        tensors |= {"null": self.null_DaDb, "report": torch.cat(self._report), "counts": self._counts()}
        temporary = temporary_path(path)
        # Clones: a part of a longer tensor, as the queue is, would be refused.
        save_file({name: one.cpu().contiguous().clone() for name, one in tensors.items()}, temporary)
        replace_into(temporary, path)

    def restore(self, path: Path) -> None:
        """Take up what `save` wrote."""
        found = load_file(path)
        for part in _SUMMED:
            for name, one in self.sums[part].tensors().items():
                one.copy_(found[f"{part}.{name}"])
        self.null_DaDb.copy_(found["null"])
        self._report = [found["report"]]
        counts = dict(zip(_COUNTS, found["counts"].tolist(), strict=True))
        self.blocks, self.outliers, self._permuted.n = counts["blocks"], counts["outliers"], counts["permuted"]
        for part in _SUMMED:
            self.sums[part].n = counts[part]
        for name in ("head", "queue"):
            if f"permuted.{name}" in found:
                setattr(self._permuted, name, found[f"permuted.{name}"].to(self._device))

    def _counts(self) -> torch.Tensor:
        return torch.tensor([self.blocks, self.outliers, self._permuted.n, *(self.sums[part].n for part in _SUMMED)])

    def _add_null(self, a_NDa: torch.Tensor, b_NDb: torch.Tensor) -> None:
        a_NDa, b_NDb = self._centred(a_NDa, b_NDb)
        self.null_DaDb.addmm_(a_NDa.T, b_NDb)

    def _centred(self, a_NDa: torch.Tensor, b_NDb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a_NDa.double() - self._mean["a"], b_NDb.double() - self._mean["b"]


def scan(
    store: ActivationStore,
    blocks: Sequence[Block],
    stretches: Stretches,
    *,
    outlier_factor: float,
    device: torch.device,
    resume: Path,
) -> Scan:
    """Take in the blocks; a scan that finds a checkpoint in `resume` goes on behind it."""
    made = Scan(store, stretches, outlier_factor, device)
    path = resume / _CHECKPOINT
    if path.exists():
        made.restore(path)
    clock = CheckpointClock(CHECKPOINT_SECONDS)
    done = sum(len(block) for block in blocks[: made.blocks])
    with progress("stitch: pass over the activations", sum(map(len, blocks)), "pairs", done=done) as bar:
        for block in blocks[made.blocks :]:
            made.add(block)
            if clock.now():
                with clock.writing():
                    made.save(path)
            bar.advance(len(block))
    made.finish()
    return made
