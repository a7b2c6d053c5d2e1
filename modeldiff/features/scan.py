"""The streaming pass over the pairs: statistics, top examples and a sample of codes, with checkpoints between shards.

The processes of a run share the shards, and what each has found is added up at the end. It comes out the same, to the
bit, for any number of processes, whichever shards each one had, also where some ended early: all that is added are
whole numbers, and the order of strength that decides about examples leaves nothing open.

Legend: B pairs of a block, K entries, F features, S text sources, G groups of them, H bins of a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy import sparse
from scipy.sparse import csr_matrix

from modeldiff.catalogue import stored
from modeldiff.catalogue.stored import Arrays, save_arrays
from modeldiff.console import Progress, progress
from modeldiff.features.codes import CodeSample, Encoder, SparseCodes, block_rows, by_shard, codes_arrays, joined_codes
from modeldiff.features.examples import Examples, TopRows, choose, passage_of
from modeldiff.features.settings import FeaturesSettings
from modeldiff.splits import spread_blocks
from modeldiff.threads import prefetched, shared_cores
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import require_free
from modeldiff.workspace.kept import is_sound
from modeldiff.workspace.ranks import Ranks
from modeldiff.workspace.stage import CheckpointClock

# Blocks encoded at the same time: some steps cannot use several cores.
_ENCODERS = 2
# Folders for what each process has found, and for the sample of each shard.
_FOUND, _SAMPLE = "scan", "codes"


class FeatureStatistics:
    """Sums over the pairs, on the device of the codes.

    Activations are added in whole numbers of a `unit` (see `Encoder.unit`): such sums do not depend on the order of
    blocks, of processes, or of a GPU's threads.

    Attributes:
        totals (2,) int64: pairs that are counted, and outliers that are left out.
        sum_SF (S + 1, F) int64: of the activations by text source, in units; last, of pairs without a source.
        histogram_FGH int32: firings by text source and by activation: stored.py.
    """

    def __init__(self, n_features: int, n_sources: int, unit: float, device: torch.device) -> None:
        self._unit = unit
        self._edges = torch.from_numpy(stored.bin_edges()).to(device)
        groups = max(1, min(n_sources, stored.SOURCES))
        self.totals = torch.zeros(2, dtype=torch.int64)
        self.sum_SF = torch.zeros(n_sources + 1, n_features, dtype=torch.int64, device=device)
        self.histogram_FGH = torch.zeros(n_features, groups, stored.BINS, dtype=torch.int32, device=device)

    @property
    def pairs(self) -> int:
        return int(self.totals[0])

    @property
    def outliers(self) -> int:
        return int(self.totals[1])

    @property
    def count_F(self) -> NDArray[np.int64]:
        """Firings."""
        return self.histogram_FGH.sum(dim=(1, 2)).cpu().numpy()

    def histogram(self) -> NDArray[np.uint32]:
        """(F, G, H), as it is published."""
        return self.histogram_FGH.cpu().numpy().view(np.uint32)

    def update(self, codes: SparseCodes, kept_B: NDArray[np.bool_], source_B: NDArray[np.int64] | None) -> None:
        """Take a block in: its activations, which pairs are kept, and the index of the text source of each (None
        without texts)."""
        kept = int(kept_B.sum())
        self.totals += torch.tensor([kept, len(kept_B) - kept])
        sources, groups, bins = len(self.sum_SF) - 1, *self.histogram_FGH.shape[1:]
        source_B = np.full(len(kept_B), sources) if source_B is None else source_B
        source_K = torch.from_numpy(source_B).to(codes.row.device).index_select(0, codes.row)
        whole_K = codes.value.double().mul_(1 / self._unit).round_().long()
        self.sum_SF.view(-1).index_add_(0, source_K * self.sum_SF.shape[1] + codes.feature, whole_K)
        bin_K = (torch.bucketize(codes.value, self._edges, right=True) - 1).clamp_(0, bins - 1)
        place_K = (codes.feature * groups + source_K.clamp_(max=groups - 1)) * bins + bin_K
        self.histogram_FGH.view(-1).index_add_(0, place_K, torch.ones_like(place_K, dtype=torch.int32))

    def add(self, other: FeatureStatistics) -> None:
        self.totals += other.totals
        self.sum_SF += other.sum_SF
        self.histogram_FGH += other.histogram_FGH

    def results(self, max_F: NDArray[np.float32]) -> Arrays:
        """What is published (see run.py), `max_F` as it is; activations are in normalised feature units."""
        count_F, sum_F = self.count_F, self.sum_SF.sum(dim=0).cpu().numpy() * self._unit
        return {
            "density": count_F / max(1, self.pairs),
            "firing_count": count_F,
            "mean_activation": (sum_F / np.maximum(1, count_F)).astype(np.float32),
            "max_activation": max_F,
            "activation_by_source": self.sum_SF[:-1].cpu().numpy() * self._unit,
        }


class _Found:
    """What the pass has found in some of the shards: their numbers (int64, ascending), statistics and top rows."""

    def __init__(self, n_features: int, n_sources: int, n_examples: int, unit: float, device: torch.device) -> None:
        self.shards = np.zeros(0, np.int64)
        self.statistics = FeatureStatistics(n_features, n_sources, unit, device)
        self.by_document, self.by_passage = (TopRows(n_features, n_examples) for _ in range(2))

    def _parts(self) -> dict[str, FeatureStatistics | TopRows]:
        return {"statistics": self.statistics, "by_document": self.by_document, "by_passage": self.by_passage}

    def arrays(self) -> Arrays:
        """All of it, for a file."""
        found: Arrays = {"shards": self.shards}
        for part, one in self._parts().items():
            for name, value in vars(one).items():
                if isinstance(value, np.ndarray | torch.Tensor) and name[0] != "_":
                    found[f"{part}.{name}"] = value if isinstance(value, np.ndarray) else value.cpu().numpy()
        return found

    def restore(self, path: Path) -> None:
        """Become what `arrays` gave, from a file."""
        arrays = load_file(path)
        self.shards = arrays.pop("shards")
        for where, value in arrays.items():
            part, name = where.split(".")
            before = getattr(self._parts()[part], name)
            again = torch.from_numpy(value).to(before.device) if isinstance(before, torch.Tensor) else value
            setattr(self._parts()[part], name, again)

    def add(self, other: _Found) -> None:
        self.shards = np.sort(np.concatenate([self.shards, other.shards]))
        self.statistics.add(other.statistics)
        self.by_document.add(other.by_document)
        self.by_passage.add(other.by_passage)


@dataclass(frozen=True)
class ScanResult:
    statistics: FeatureStatistics
    max_F: NDArray[np.float32]
    examples: Examples
    sample: CodeSample
    sampled: list[Block]
    """Blocks that the sample is of; it leaves out the outliers among their pairs."""


def scan(encoder: Encoder, settings: FeaturesSettings, resume: Path, ours: Ranks) -> ScanResult | None:
    """Stream the store once, each process its share of the shards; the first one gets the result.

    resume: folder for checkpoints. A scan that finds some there takes the shards that are in none of them; one that is
    damaged, or of which a sample is, is dropped.
    """
    over = _Pass.of(encoder, settings, resume)
    left: dict[str, list[int]] = ours.broadcast(over.left() if ours.first else None)
    done = {shard for some in left.values() for shard in some}
    mine = ours.mine([shard for shard in over.shards if shard not in done])
    if ours.first and not left:
        over.require_free(ours.world)
    if mine:
        # The top rows want rising ones.
        begun = (name for name, some in list(left.items())[ours.rank : ours.rank + 1] if some[-1] < mine[0])
        over.take(mine, done, next(begun, None))
    ours.barrier()
    return over.result() if ours.first else None


@dataclass(frozen=True)
class _Pass:
    """What all processes do, and where each keeps what it has found."""

    encoder: Encoder
    shards: dict[int, list[Block]]
    sampled: list[Block]
    new: Callable[[torch.device], _Found]
    """What has found nothing yet."""
    resume: Path

    @classmethod
    def of(cls, encoder: Encoder, settings: FeaturesSettings, resume: Path) -> Self:
        store, n_features = encoder.store, encoder.crosscoder.n_features
        blocks = spread_blocks(store.blocks(block_rows(n_features)), settings.pairs)
        shards = {shard: some for shard, some in enumerate(by_shard(blocks, len(store.info.shards))) if some}
        new = partial(_Found, n_features, len(store.info.sources), settings.examples, encoder.unit())
        return cls(encoder, shards, spread_blocks(blocks, settings.sample_pairs), new, resume)

    def require_free(self, processes: int) -> None:
        checkpoint = sum(array.nbytes for array in self.new(torch.device("cpu")).arrays().values())
        # The one before stays beside it.
        what = f"a pass over {self.encoder.crosscoder.n_features:,} features"
        require_free(self.resume, 2 * processes * checkpoint, what)

    def left(self) -> dict[str, list[int]]:
        """By name, in order, the sound checkpoints that an earlier run has left, and the shards that each covers.
        Others are dropped."""
        left = {}
        for path in self._checkpoints():
            if not is_sound(path):
                continue
            with safe_open(path, "numpy") as file:
                shards = file.get_tensor("shards").tolist()
            if all(is_sound(self._sample_of(shard)) for shard in shards):
                left[path.name] = shards
            else:
                path.unlink()
        return left

    def take(self, mine: Sequence[int], done: set[int], begun: str | None) -> None:
        """Take these shards in, behind those of the checkpoint that was begun. `done`: all that are in checkpoints."""
        found, clock = self.new(self.encoder.sums_on), CheckpointClock(0.0)
        path = self.resume / _FOUND / (begun or f"{mine[0]:05d}.safetensors")
        if begun:
            found.restore(path)
        pairs = {shard: sum(map(len, blocks)) for shard, blocks in self.shards.items()}
        finished, sampled = sum(pairs[shard] for shard in done), set(self.sampled)
        total = finished + sum(pairs[shard] for shard in mine)
        bar_of = progress("features: pass over the activations", total, "pairs", done=finished)
        with bar_of as bar, shared_cores(_ENCODERS):
            for shard in mine:
                save_arrays(self._sample_of(shard), self._take(found, shard, sampled, bar))
                found.shards = np.append(found.shards, shard)
                if clock.now() or shard == mine[-1]:
                    with clock.writing():
                        _checkpoint(path, found)

    def _take(self, found: _Found, shard: int, sampled: set[Block], bar: Progress) -> Arrays:
        """Take a shard in; what its file of the sample holds."""
        encoder, store, n_features = self.encoder, self.encoder.store, self.encoder.crosscoder.n_features
        source_N, document_N = _origins(store, shard)
        codes_here, rows_here = [csr_matrix((0, n_features), dtype=np.float32)], [np.zeros(0, np.int64)]
        least_F = found.by_document.least(encoder.sums_on)
        for block, (codes, kept_B) in prefetched(encoder.sparse, self.shards[shard], _ENCODERS):
            here, first_row = slice(block.start, block.stop), int(store.first_row[shard]) + block.start
            found.statistics.update(codes, kept_B, None if source_N is None else source_N[here])
            # What is too weak among documents is among passages, too: they are parts of documents.
            strong = codes.where(codes.value > least_F.index_select(0, codes.feature))
            place, feature, value = strong.numpy()
            document, row = document_N[here][place], first_row + place
            if found.by_document.update(feature, value, row, document):
                least_F = found.by_document.least(encoder.sums_on)
            found.by_passage.update(feature, value, row, passage_of(document, row))
            if block in sampled:
                codes_here.append(codes.matrix(len(block), n_features)[kept_B])
                rows_here.append(first_row + np.flatnonzero(kept_B))
            bar.advance(len(block))
        found.by_document.settle()
        found.by_passage.settle()
        return codes_arrays(sparse.vstack(codes_here, format="csr")) | {"rows": np.concatenate(rows_here)}

    def result(self) -> ScanResult:
        """What all processes have found."""
        first, *others = self._checkpoints()
        whole = self.new(torch.device("cpu"))
        whole.restore(first)
        for path in others:
            one = self.new(torch.device("cpu"))
            one.restore(path)
            whole.add(one)
        parts = [load_file(self._sample_of(shard)) for shard in self.shards]
        codes_NF = joined_codes(parts, self.encoder.crosscoder.n_features)
        sample = CodeSample(codes_NF, np.concatenate([part["rows"] for part in parts]))
        examples, max_F = choose(whole.by_document, whole.by_passage), whole.by_document.activation[:, 0].copy()
        return ScanResult(whole.statistics, max_F, examples, sample, self.sampled)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.resume / _FOUND).glob("*.safetensors"))

    def _sample_of(self, shard: int) -> Path:
        return self.resume / _SAMPLE / f"{shard:05d}.safetensors"


def _origins(store: ActivationStore, shard: int) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """(source, document) of each pair of a shard. Without texts there are no sources, and every row counts as a
    document of its own."""
    if not store.info.has_texts:
        return None, store.first_row[shard] + np.arange(store.info.shards[shard])
    plan = store.plan(shard)
    sources, indices = (
        np.array([getattr(one, name) for one in plan.documents], np.int64) for name in ("source", "index")
    )
    return sources[plan.pairs.document], indices[plan.pairs.document]


def _checkpoint(path: Path, found: _Found) -> None:
    save_arrays(path, found.arrays())
