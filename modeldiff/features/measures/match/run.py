"""Stability: which features of a crosscoder come back in others that read the same two models. Makes a `match`.

Layout (normative; R features of the reference that were looked for, O other crosscoders):
    match.json          format, refs of the inputs, counts of pairs, threshold, sizes of the partitions, and the
                        summary of match_summary.py
    match.safetensors   (R,): feature, partition, firing_count; (O, R): match, correlation, match_partition, mutual,
                        came_back (partition of a mutual match at or above the threshold,
                        -2: at or above, but not mutual), cosine_a, cosine_b (NaN where
                        one of the two lacks the side), and of permuted pairs chance_correlation, chance_came_back.
                        Partitions are 0, 1, 2 for A, shared, B; -1 stands for none
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from modeldiff.console import progress, say
from modeldiff.crosscoder import CrosscoderConfig, load
from modeldiff.crosscoder.saving import CONFIG_NAME
from modeldiff.errors import InputError
from modeldiff.features.codes import CodeSample, Encoder, SampleWriter, block_rows, by_shard
from modeldiff.features.correlation import Columns
from modeldiff.features.inputs import find_activations, outlier_factor_of
from modeldiff.features.measures.match.matching import Dictionary, decoder_cosines, match
from modeldiff.features.measures.match.settings import KIND, MatchSettings
from modeldiff.features.measures.match.summary import PARTITIONS, Arrays, summarise
from modeldiff.lm.device import resolve_device
from modeldiff.splits import spread_blocks
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import read_json, replace_into, temporary_path

SCHEMA = 1
FORMAT = 1
MATCH_NAME = "match.json"
ARRAYS_NAME = "match.safetensors"


@dataclass(frozen=True)
class _Member:
    """One of the crosscoders; its weights are loaded only while they are needed."""

    artifact: Artifact
    config: CrosscoderConfig

    @property
    def partition_F(self) -> NDArray[np.int8]:
        sizes = (self.config.n_a_only, self.config.n_shared, self.config.n_b_only)
        return np.repeat(np.arange(len(PARTITIONS), dtype=np.int8), sizes)


def run(settings: MatchSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Look for the features of the first crosscoder in the others.

    Raises:
        InputError: one of the crosscoders is not there or reads other widths, the activations are gone, or the
            reference has no exclusive features and no others are asked for.
        DamagedError: a file of the inputs is damaged.
    """
    members = [_open(workspace.find("crosscoder", ref)) for ref in settings.crosscoders]
    activations = find_activations(workspace, members[0].artifact, settings.activations)
    store = ActivationStore(activations)
    for member in members:
        _check(member, store)
    features_R = _looked_for(members[0], settings.all_features)
    device = resolve_device(settings.device)
    outlier_factor = outlier_factor_of(members[0].artifact, settings.outlier_factor)
    inputs = {"reference": members[0].artifact.as_input()}
    inputs |= {f"other {number}": one.artifact.as_input() for number, one in enumerate(members[1:], start=1)}
    inputs["activations"] = activations.as_input()

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")
        return _Match(settings, members, features_R, store, device, outlier_factor, work).build()

    order = Order(KIND, settings, inputs, SCHEMA, {"outlier_factor": outlier_factor})
    return produce(workspace, order, build, name=name, force=force)


def _open(artifact: Artifact) -> _Member:
    path = artifact.file(CONFIG_NAME)
    return _Member(artifact, CrosscoderConfig.from_json(read_json(path), str(path)))


def _check(member: _Member, store: ActivationStore) -> None:
    config, ref = member.config, member.artifact.ref
    if (config.width_a, config.width_b) != store.widths:
        raise InputError(
            f"{ref} reads widths {config.width_a} and {config.width_b}, but {store.artifact.ref} has "
            f"{store.widths[0]} and {store.widths[1]}: match crosscoders of the same two models"
        )
    for side, layer in (("a", config.layer_a), ("b", config.layer_b)):
        found = store.info.sides[side].layer
        if None not in (layer, found) and layer != found:
            say(f"{ref} was trained on layer {layer} of {side.upper()}, but {store.artifact.ref} holds layer {found}")


def _looked_for(reference: _Member, all_features: bool) -> NDArray[np.int64]:
    """Ascending."""
    partition_F = reference.partition_F
    shared = PARTITIONS.index("shared")
    wanted = np.flatnonzero((partition_F != shared) | all_features)
    if not len(wanted):
        raise InputError(f"{reference.artifact.ref} has no exclusive features: look for all with --all-features")
    return wanted


@dataclass(frozen=True)
class _Match:
    """The work of one run."""

    settings: MatchSettings
    members: list[_Member]
    features_R: NDArray[np.int64]
    store: ActivationStore
    device: torch.device
    outlier_factor: float
    work: Work

    def build(self) -> dict[str, Any]:
        shards = self._shards()
        for index, member in enumerate(self.members):
            self._encode(index, member, shards)
        sample = self._codes(0)
        if not len(sample.rows_N):
            raise InputError("no pair is left to compare on: raise --outlier-factor, or use 0 to keep all pairs")
        reference = Dictionary(Columns.of(sample.codes_NF), self.members[0].partition_F)
        found = [self._against(reference, index) for index in range(1, len(self.members))]
        arrays: Arrays = {name: np.stack([one[name] for one in found]) for name in found[0]}
        count_F = np.bincount(sample.codes_NF.indices, minlength=sample.codes_NF.shape[1])
        arrays |= {
            "feature": self.features_R.astype(np.int32),
            "partition": reference.partition_F[self.features_R],
            "firing_count": count_F[self.features_R].astype(np.int64),
        }
        self.work.write_bytes(ARRAYS_NAME, save(arrays))
        others = [one.artifact.ref for one in self.members[1:]]
        summary = summarise(arrays, others)
        pairs, total = len(sample.rows_N), sum(map(len, (block for blocks in shards for block in blocks)))
        self.work.write_json(MATCH_NAME, self._description(others, pairs, total - pairs, summary))
        return {
            "pairs": pairs,
            "outliers": total - pairs,
            **{part: {"alive": one["alive"], "came_back_in_all": one["in_all"][part]} for part, one in summary.items()},
        }

    def _shards(self) -> list[list[Block]]:
        """The same blocks for all, however large their dictionaries."""
        rows = block_rows(max(one.config.n_features for one in self.members))
        return by_shard(spread_blocks(self.store.blocks(rows), self.settings.pairs), len(self.store.info.shards))

    def _writer(self, index: int) -> SampleWriter:
        return SampleWriter(self.work.resume / f"codes-{index}", self.members[index].config.n_features)

    def _codes(self, index: int) -> CodeSample:
        return self._writer(index).load(len(self.store.info.shards))

    def _encode(self, index: int, member: _Member, shards: list[list[Block]]) -> None:
        """Codes of the pairs, a file per shard; what an interrupted run has written is kept."""
        writer = self._writer(index)
        missing = [shard for shard in range(len(shards)) if not writer.has(shard)]
        if not missing:
            return
        encoder = Encoder(load(member.artifact), self.store, self.device, self.outlier_factor)
        total = sum(len(block) for blocks in shards for block in blocks)
        left = sum(len(block) for shard in missing for block in shards[shard])
        with progress(f"match: codes of {member.artifact.ref}", total, "pairs", done=total - left) as bar:
            for shard in missing:
                for block in shards[shard]:
                    codes, kept_B = encoder.sparse(block)
                    writer.add(codes, kept_B, self.store.first_row[shard] + block.start)
                    bar.advance(len(block))
                writer.finish_shard(shard)

    def _against(self, reference: Dictionary, index: int) -> Arrays:
        """The arrays (R,) against one other crosscoder, kept for a resumed run."""
        path = self.work.resume / f"against-{index}.safetensors"
        if not path.exists():
            _save(self._compare(reference, index), path)
        return load_file(path)

    def _compare(self, reference: Dictionary, index: int) -> Arrays:
        member = self.members[index]
        other = Dictionary(Columns.of(self._codes(index).codes_NF), member.partition_F)
        label = f"match: in {member.artifact.ref}"
        found = match(reference, other, self.features_R, label)
        chance = match(reference, other.shifted(), self.features_R, f"{label}, by chance")
        first, second = (load(one.artifact) for one in (self.members[0], member))
        cosines = decoder_cosines(first, second, self.features_R, found.feature)
        return {
            "match": found.feature,
            "correlation": found.correlation,
            "match_partition": found.partition,
            "mutual": found.mutual,
            "came_back": found.came_back(self.settings.threshold),
            **{f"cosine_{side}": cosine_R for side, cosine_R in cosines.items()},
            "chance_correlation": chance.correlation,
            "chance_came_back": chance.came_back(self.settings.threshold),
        }

    def _description(self, others: list[str], pairs: int, outliers: int, summary: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "reference": self.members[0].artifact.ref,
            "others": others,
            "activations": self.store.artifact.ref,
            "pairs": pairs,
            "outliers": outliers,
            "threshold": self.settings.threshold,
            "all_features": self.settings.all_features,
            "sizes": [
                {"A": one.config.n_a_only, "shared": one.config.n_shared, "B": one.config.n_b_only}
                for one in self.members
            ],
            "summary": summary,
        }


def _save(arrays: Arrays, path: Path) -> None:
    temporary = temporary_path(path)
    save_file(arrays, temporary)
    replace_into(temporary, path)
