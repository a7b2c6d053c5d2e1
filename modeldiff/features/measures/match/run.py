"""Stability: which features of a crosscoder come back in others that read the same two models. Makes a `match`; its
layout: result.py.

Legend: N pairs, F features, R features of the reference that are looked for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from modeldiff.catalogue.stored import Arrays, kept
from modeldiff.console import progress, say
from modeldiff.crosscoder import CrosscoderConfig, load
from modeldiff.crosscoder.saving import CONFIG_NAME
from modeldiff.crosscoder.settings import outlier_factor_of
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder, block_rows, codes_arrays, joined_codes
from modeldiff.features.correlation import Columns
from modeldiff.features.inputs import measured_on
from modeldiff.features.measures.match import MatchSettings
from modeldiff.features.measures.match.matching import Dictionary, decoder_cosines, match
from modeldiff.features.measures.match.result import ARRAYS_NAME, FORMAT, MATCH_NAME, PARTITIONS, summarise
from modeldiff.lm.device import resolve_device
from modeldiff.splits import spread_blocks
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import read_json

SCHEMA = 2


def run(settings: MatchSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Look for the features of the first crosscoder in the others.

    Raises:
        InputError: one of the crosscoders is not there or reads other widths, or the activations are gone.
        DamagedError: a file of the inputs is damaged.
    """
    members = [workspace.find("crosscoder", ref) for ref in settings.crosscoders]
    activations = measured_on(workspace, members[0], settings.activations)
    store = ActivationStore(activations)
    configs = [_config(member, store) for member in members]
    device = resolve_device(settings.device)
    outlier_factor = outlier_factor_of(members[0], settings.outlier_factor)
    # The same blocks for all, however large their dictionaries.
    blocks = spread_blocks(store.blocks(block_rows(max(one.n_features for one in configs))), settings.pairs)
    pairs = _Pairs(store, blocks, device, outlier_factor)
    inputs = {"reference": members[0].as_input(), "activations": activations.as_input()}
    inputs |= {f"other {number}": one.as_input() for number, one in enumerate(members[1:], start=1)}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")
        return _build(pairs, members, configs, settings.threshold, work)

    order = Order("match", settings, inputs, SCHEMA, {"outlier_factor": outlier_factor})
    return produce(workspace, order, build, name=name, force=force)


def _config(member: Artifact, store: ActivationStore) -> CrosscoderConfig:
    """A crosscoder's, if it reads the widths of the activations."""
    path = member.file(CONFIG_NAME)
    config = CrosscoderConfig.from_json(read_json(path), str(path))
    ref, on = member.ref, store.artifact.ref
    if (config.width_a, config.width_b) != store.widths:
        raise InputError(
            f"{ref} reads widths {config.width_a} and {config.width_b}, but {on} has {store.widths[0]} and "
            f"{store.widths[1]}: match crosscoders of the same two models"
        )
    for side, layer in (("a", config.layer_a), ("b", config.layer_b)):
        held = store.info.sides[side].layer
        if None not in (layer, held) and layer != held:
            say(f"{ref} was trained on layer {layer} of {side.upper()}, but {on} holds layer {held}")
    return config


def _sizes(config: CrosscoderConfig) -> dict[str, int]:
    """Of the partitions."""
    return dict(zip(PARTITIONS, (config.n_a_only, config.n_shared, config.n_b_only), strict=True))


@dataclass(frozen=True)
class _Pairs:
    """What all crosscoders are compared on."""

    store: ActivationStore
    blocks: list[Block]
    device: torch.device
    outlier_factor: float

    def dictionary(self, member: Artifact, config: CrosscoderConfig, folder: Path) -> Dictionary:
        """A crosscoder's codes of the pairs. They are kept in `folder`, shard by shard, for a run that is interrupted;
        the weights are in memory only while codes are made."""
        encoder = functools.cache(lambda: Encoder(load(member), self.store, self.device, self.outlier_factor))
        files = {block.shard: folder / f"{block.shard:05d}.safetensors" for block in self.blocks}
        done = sum(len(block) for block in self.blocks if files[block.shard].exists())
        with progress(f"match: codes of {member.ref}", sum(map(len, self.blocks)), "pairs", done=done) as bar:

            def codes(shard: int) -> Arrays:
                blocks = [block for block in self.blocks if block.shard == shard]
                codes_NF, kept_N = encoder().matrix(blocks, bar.advance)
                return codes_arrays(codes_NF[kept_N])

            parts = [kept(path, partial(codes, shard)) for shard, path in files.items()]
        codes_NF = joined_codes(parts, config.n_features)
        if not codes_NF.shape[0]:
            raise InputError("no pair is left to compare on: raise --outlier-factor, or use 0 to keep all pairs")
        partition_F = np.repeat(np.arange(len(PARTITIONS), dtype=np.int8), list(_sizes(config).values()))
        return Dictionary(Columns.of(codes_NF), partition_F)


def _build(
    pairs: _Pairs, members: list[Artifact], configs: list[CrosscoderConfig], threshold: float, work: Work
) -> dict[str, Any]:
    def dictionary(index: int) -> Dictionary:
        return pairs.dictionary(members[index], configs[index], work.resume / f"codes-{index}")

    reference = dictionary(0)
    is_shared_F = reference.partition_F == PARTITIONS.index("shared")
    features_R = np.flatnonzero(~is_shared_F | is_shared_F.all())

    def against(index: int) -> Arrays:
        member = members[index]
        found = match(reference, dictionary(index), features_R, threshold, f"match: in {member.ref}")
        return found | decoder_cosines(load(members[0]), load(member), features_R, found["match"])

    others = range(1, len(members))
    found = [kept(work.resume / f"against-{index}.safetensors", partial(against, index)) for index in others]
    codes_NF = reference.columns.codes_NF
    firing_count_F = np.bincount(codes_NF.indices, minlength=codes_NF.shape[1])
    arrays: Arrays = {
        **{name: np.stack([one[name] for one in found]) for name in found[0]},
        "feature": features_R.astype(np.int32),
        "partition": reference.partition_F[features_R],
        "firing_count": firing_count_F[features_R].astype(np.int64),
    }
    work.write_bytes(ARRAYS_NAME, save(arrays))
    counts = {"pairs": codes_NF.shape[0], "outliers": sum(map(len, pairs.blocks)) - codes_NF.shape[0]}
    refs = [one.ref for one in members]
    summary = summarise(arrays, refs[1:])
    description = {
        "format": FORMAT,
        "reference": refs[0],
        "others": refs[1:],
        "activations": pairs.store.artifact.ref,
        **counts,
        "threshold": threshold,
        "sizes": [_sizes(config) for config in configs],
        "summary": summary,
    }
    work.write_json(MATCH_NAME, description)
    return counts | {part: {"alive": one["alive"], "came_back": one["in_all"][part]} for part, one in summary.items()}
