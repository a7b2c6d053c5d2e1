"""The streaming pass over the pairs: statistics, top examples and a sample of codes, with a checkpoint after each
shard.

Legend: B pairs of a block, F features, S text sources, G groups of them, H bins of a histogram.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import sparse
from scipy.sparse import csr_matrix

from modeldiff.catalogue import stored
from modeldiff.catalogue.stored import Arrays, save_arrays
from modeldiff.console import progress
from modeldiff.features.codes import CodeSample, Encoder, SparseCodes, block_rows, by_shard, codes_arrays, joined_codes
from modeldiff.features.examples import Examples, TopRows, choose, passage_of
from modeldiff.features.settings import FeaturesSettings
from modeldiff.splits import spread_blocks
from modeldiff.threads import prefetched, shared_cores
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import require_free
from modeldiff.workspace.kept import is_sound

# Blocks encoded at the same time: some steps cannot use several cores.
_ENCODERS = 2
_CHECKPOINT = "scan.safetensors"

_State = dict[str, "FeatureStatistics | TopRows"]
"""What the pass accumulates: in each part, arrays."""


class FeatureStatistics:
    """Sums over the pairs, in float64 and int64.

    Attributes:
        totals: pairs that are counted, and outliers that are left out.
        count_F: firings; sum_F: of the activations; max_F (float32); source_sum_SF: of the activations by text source;
            histogram_FGH (uint32): firings by text source and by activation: stored.py.
    """

    def __init__(self, n_features: int, n_sources: int) -> None:
        self.totals = np.zeros(2, np.int64)
        self.count_F = np.zeros(n_features, np.int64)
        self.sum_F = np.zeros(n_features)
        self.max_F = np.zeros(n_features, np.float32)
        self.source_sum_SF = np.zeros((n_sources, n_features))
        self.histogram_FGH = np.zeros((n_features, max(1, min(n_sources, stored.SOURCES)), stored.BINS), np.uint32)

    @property
    def pairs(self) -> int:
        return int(self.totals[0])

    @property
    def outliers(self) -> int:
        return int(self.totals[1])

    def update(self, codes: SparseCodes, kept_B: NDArray[np.bool_], source_B: NDArray[np.int64] | None) -> None:
        """Take a block in: its activations, which pairs are kept, and the index of the text source of each (None
        without texts)."""
        self.totals += (kept_B.sum(), (~kept_B).sum())
        features = len(self.count_F)
        value = codes.value.astype(np.float64)
        self.count_F += np.bincount(codes.feature, minlength=features)
        self.sum_F += np.bincount(codes.feature, value, features)
        np.maximum.at(self.max_F, codes.feature, codes.value)
        groups, bins = self.histogram_FGH.shape[1:]
        group = 0 if source_B is None else np.minimum(source_B, groups - 1)[codes.row]
        np.add.at(
            self.histogram_FGH.reshape(-1), (codes.feature * groups + group) * bins + _bin(codes.value), np.uint32(1)
        )
        if source_B is not None:
            # Blocks have few sources, however many there are in all.
            present, source = np.unique(source_B, return_inverse=True)
            flat, size = source[codes.row] * features + codes.feature, len(present) * features
            self.source_sum_SF[present] += np.bincount(flat, value, size).reshape(-1, features)

    def results(self) -> Arrays:
        """What is published (see run.py); activations are in normalised feature units."""
        return {
            "density": self.count_F / max(1, self.pairs),
            "firing_count": self.count_F,
            "mean_activation": (self.sum_F / np.maximum(1, self.count_F)).astype(np.float32),
            "max_activation": self.max_F,
            "activation_by_source": self.source_sum_SF,
        }


def _bin(value: NDArray[np.float32]) -> NDArray[np.int64]:
    """In which bin of a histogram an activation above 0 falls; the first and the last one are open."""
    return np.clip(np.searchsorted(stored.bin_edges(), value, side="right") - 1, 0, stored.BINS - 1)


@dataclass(frozen=True)
class ScanResult:
    statistics: FeatureStatistics
    examples: Examples
    sample: CodeSample
    sampled: list[Block]
    """Blocks that the sample is of; it leaves out the outliers among their pairs."""


def scan(encoder: Encoder, settings: FeaturesSettings, resume: Path) -> ScanResult:
    """Stream the store once. `resume`: folder for checkpoints; a scan that finds one there goes on behind its last
    whole shard; where a part of it is damaged, it begins anew."""
    store = encoder.store
    n_features = encoder.crosscoder.n_features
    blocks = spread_blocks(store.blocks(block_rows(n_features)), settings.pairs)
    sampled = spread_blocks(blocks, settings.sample_pairs)
    is_sampled = set(sampled)
    statistics = FeatureStatistics(n_features, len(store.info.sources))
    by_document, by_passage = (TopRows(n_features, settings.examples) for _ in range(2))
    state: _State = {"statistics": statistics, "by_document": by_document, "by_passage": by_passage}
    shards = by_shard(blocks, len(store.info.shards))
    sample_files = [resume / "codes" / f"{shard:05d}.safetensors" for shard in range(len(shards))]
    done = _restore(resume / _CHECKPOINT, state, sample_files)
    if not done:
        checkpoint = sum(array.nbytes for part in state.values() for array in _arrays(part).values())
        require_free(resume, 2 * checkpoint, f"a pass over {n_features:,} features")  # the one before stays beside it
    total, finished = sum(map(len, blocks)), sum(len(block) for block in blocks if block.shard < done)
    bar_of = progress("features: pass over the activations", total, "pairs", done=finished)
    with bar_of as bar, shared_cores(_ENCODERS):
        for shard in range(done, len(shards)):
            source_N, document_N = _origins(store, shard)
            codes_here, rows_here = [csr_matrix((0, n_features), dtype=np.float32)], [np.zeros(0, np.int64)]
            for block, (codes, kept_B) in prefetched(encoder.sparse, shards[shard], _ENCODERS):
                here, first_row = slice(block.start, block.stop), int(store.first_row[shard]) + block.start
                statistics.update(codes, kept_B, None if source_N is None else source_N[here])
                document, row = document_N[here][codes.row], first_row + codes.row
                by_document.update(codes.feature, codes.value, row, document)
                by_passage.update(codes.feature, codes.value, row, passage_of(document, row))
                if block in is_sampled:
                    codes_here.append(codes.matrix(len(block), n_features)[kept_B])
                    rows_here.append(first_row + np.flatnonzero(kept_B))
                bar.advance(len(block))
            arrays = codes_arrays(sparse.vstack(codes_here, format="csr"))
            save_arrays(sample_files[shard], arrays | {"rows": np.concatenate(rows_here)})
            by_document.settle()
            by_passage.settle()
            _checkpoint(resume / _CHECKPOINT, state, shard + 1)
    parts = [load_file(path) for path in sample_files]
    sample = CodeSample(joined_codes(parts, n_features), np.concatenate([part["rows"] for part in parts]))
    return ScanResult(statistics, choose(by_document, by_passage), sample, sampled)


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


def _checkpoint(path: Path, state: _State, shards: int) -> None:
    arrays = {f"{part}.{name}": array for part, one in state.items() for name, array in _arrays(one).items()}
    save_arrays(path, arrays | {"shards": np.array(shards)})


def _restore(path: Path, state: _State, sample_files: list[Path]) -> int:
    """Brings the parts to the checkpoint, if there is one, and the samples of what it covers are there; the number of
    shards it covers."""
    if not is_sound(path):
        return 0
    arrays = load_file(path)
    done = int(arrays["shards"])
    if not all(map(is_sound, sample_files[:done])):
        return 0
    for part, one in state.items():
        for name in _arrays(one):
            setattr(one, name, arrays[f"{part}.{name}"])
    return done


def _arrays(part: FeatureStatistics | TopRows) -> Arrays:
    return {name: value for name, value in vars(part).items() if isinstance(value, np.ndarray)}
