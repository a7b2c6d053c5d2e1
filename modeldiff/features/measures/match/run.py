"""Stability: which features of a crosscoder come back in others that read the same two models. Makes a `match`.

Layout (normative; R features of the reference that were looked for, O other crosscoders):
    match.json          format, refs of the inputs, counts of pairs, threshold, sizes of the partitions, and by
                        partition how many features came back where (`summarise`)
    match.safetensors   (R,): feature, partition, firing_count; (O, R): match, correlation, came_back,
                        chance_correlation (see `matching.match`), cosine_a, cosine_b (NaN where one of the two lacks
                        the side). Partitions are 0, 1, 2 for A, shared, B; -1 stands for none
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from scipy import sparse

from modeldiff.console import progress, say
from modeldiff.crosscoder import CrosscoderConfig, load
from modeldiff.crosscoder.saving import CONFIG_NAME
from modeldiff.errors import InputError
from modeldiff.features.codes import Arrays, Encoder, SampleWriter, block_rows, by_shard
from modeldiff.features.correlation import Columns
from modeldiff.features.inputs import outlier_factor_of
from modeldiff.features.measures.match import MatchSettings
from modeldiff.features.measures.match.matching import Dictionary, decoder_cosines, match
from modeldiff.features.stored import read_arrays, read_info
from modeldiff.linear.stitch import number_or_none
from modeldiff.lm.device import resolve_device
from modeldiff.splits import spread_blocks
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import read_json, write_bytes

SCHEMA = 2
FORMAT = 2
MATCH_NAME = "match.json"
ARRAYS_NAME = "match.safetensors"
PARTITIONS = ("A", "shared", "B")
WHERE = {"A": 0, "shared": 1, "B": 2, "one-sided": -2, "none": -1}
"""Where a feature came back, as numbered in the arrays: one-sided and none: it did not."""


def run(settings: MatchSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Look for the features of the first crosscoder in the others.

    Raises:
        InputError: one of the crosscoders is not there or reads other widths, or the activations are gone.
        DamagedError: a file of the inputs is damaged.
    """
    members = [workspace.find("crosscoder", ref) for ref in settings.crosscoders]
    named = settings.activations
    activations = (
        workspace.source_of(members[0], "activations") if named is None else workspace.find("activations", named)
    )
    store = ActivationStore(activations)
    configs = [_config(member, store) for member in members]
    sizes = [dict(zip(PARTITIONS, (one.n_a_only, one.n_shared, one.n_b_only), strict=True)) for one in configs]
    device = resolve_device(settings.device)
    outlier_factor = outlier_factor_of(members[0], settings.outlier_factor)
    # The same blocks for all, however large their dictionaries.
    blocks = spread_blocks(store.blocks(block_rows(max(one.n_features for one in configs))), settings.pairs)
    inputs = {"reference": members[0].as_input(), "activations": store.artifact.as_input()}
    inputs |= {f"other {number}": one.as_input() for number, one in enumerate(members[1:], start=1)}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")

        def dictionary(index: int) -> Dictionary:
            """One crosscoder's; its weights are in memory only while they are needed."""
            codes_NF = _encoded(
                lambda: Encoder(load(members[index]), store, device, outlier_factor),
                SampleWriter(work.resume / f"codes-{index}", configs[index].n_features),
                by_shard(blocks, len(store.info.shards)),
                f"match: codes of {members[index].ref}",
            )
            numbers = np.arange(len(PARTITIONS), dtype=np.int8)
            return Dictionary(Columns.of(codes_NF), np.repeat(numbers, list(sizes[index].values())))

        reference = dictionary(0)
        arrays = _compared(reference, dictionary, members, settings.threshold, work)
        work.write_bytes(ARRAYS_NAME, save(arrays))
        others, pairs = [one.ref for one in members[1:]], reference.columns.codes_NF.shape[0]
        counts = {"pairs": pairs, "outliers": sum(map(len, blocks)) - pairs}
        summary = summarise(arrays, others)
        description = {
            "format": FORMAT,
            "reference": members[0].ref,
            "others": others,
            "activations": store.artifact.ref,
            **counts,
            "threshold": settings.threshold,
            "sizes": sizes,
            "summary": summary,
        }
        work.write_json(MATCH_NAME, description)
        return counts | {
            part: {"alive": one["alive"], "came_back": one["in_all"][part]} for part, one in summary.items()
        }

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


def _encoded(
    open_encoder: Callable[[], Encoder], writer: SampleWriter, shards: list[list[Block]], label: str
) -> sparse.csr_matrix:
    """Codes of the pairs, a file per shard; what an interrupted run has written is kept."""
    missing = [shard for shard in range(len(shards)) if not writer.has(shard)]
    if missing:
        encoder = open_encoder()
        with progress(label, sum(len(block) for shard in missing for block in shards[shard]), "pairs") as bar:
            for shard in missing:
                for block in shards[shard]:
                    codes, kept_B = encoder.sparse(block)
                    writer.add(codes, kept_B, encoder.store.first_row[shard] + block.start)
                    bar.advance(len(block))
                writer.finish_shard(shard)
    codes_NF = writer.load(len(shards)).codes_NF
    if not codes_NF.shape[0]:
        raise InputError("no pair is left to compare on: raise --outlier-factor, or use 0 to keep all pairs")
    return codes_NF


def _compared(
    reference: Dictionary,
    dictionary: Callable[[int], Dictionary],
    members: list[Artifact],
    threshold: float,
    work: Work,
) -> Arrays:
    """The arrays of the artifact; those against each other crosscoder are kept for a resumed run."""
    is_shared_F = reference.partition_F == PARTITIONS.index("shared")
    features_R = np.flatnonzero(~is_shared_F | is_shared_F.all())
    found = []
    for index, member in enumerate(members[1:], start=1):
        path = work.resume / f"against-{index}.safetensors"
        if not path.exists():
            one = match(reference, dictionary(index), features_R, threshold, f"match: in {member.ref}")
            one |= decoder_cosines(load(members[0]), load(member), features_R, one["match"])
            write_bytes(path, save(one))
        found.append(load_file(path))
    codes_NF = reference.columns.codes_NF
    return {
        **{name: np.stack([one[name] for one in found]) for name in found[0]},
        "feature": features_R.astype(np.int32),
        "partition": reference.partition_F[features_R],
        "firing_count": np.bincount(codes_NF.indices, minlength=codes_NF.shape[1])[features_R].astype(np.int64),
    }


def summarise(arrays: Arrays, others: list[str]) -> dict[str, Any]:
    """By partition of the reference, of those that were looked for: the number of `features`, how many of them are
    `alive` (fire at least once; only they count below), `against` each other crosscoder how many came back where and
    the median of the best correlation, also with the pairs permuted (`chance`), and how many came back at the same
    place `in_all`.

    Args:
        others: refs of the other crosscoders, in the arrays' order.
    """
    summary = {}
    for number, partition in enumerate(PARTITIONS):
        mine_R = arrays["partition"] == number
        if not mine_R.any():
            continue
        alive_R = mine_R & (arrays["firing_count"] > 0)
        back_OR, correlation_OR, chance_OR = (
            arrays[name][:, alive_R] for name in ("came_back", "correlation", "chance_correlation")
        )
        against = [
            {
                "crosscoder": other,
                "came_back": {name: int((back_OR[index] == code).sum()) for name, code in WHERE.items()},
                "correlation": float(np.median(correlation_OR[index])) if alive_R.any() else None,
                "chance": float(np.median(chance_OR[index])) if alive_R.any() else None,
            }
            for index, other in enumerate(others)
        ]
        in_all = {name: int((back_OR == code).all(axis=0).sum()) for name, code in WHERE.items()}
        sizes = {"features": int(mine_R.sum()), "alive": int(alive_R.sum())}
        summary[partition] = {**sizes, "against": against, "in_all": in_all}
    return summary


def read_match(artifact: Artifact) -> tuple[dict[str, Any], Arrays]:
    """(content of match.json, of match.safetensors). Raises as `read_info`."""
    info = read_info(artifact, MATCH_NAME, version=FORMAT, again="modeldiff features match")
    return info, read_arrays(artifact, ARRAYS_NAME)


def rows(info: dict[str, Any], arrays: Arrays, partition: str, top: int | None = None) -> list[dict[str, Any]]:
    """Alive features of a partition of the reference as JSON data: those that came back in most crosscoders in the
    same partition first, then those that came back in any, then by mean correlation.

    Returns:
        id, partition, density (share of the pairs on which it fires), came_back (in so many crosscoders), and `found`:
        for each other crosscoder id and partition of the best match (None: no feature ever fires with this one more
        than by chance), correlation, chance (the best with the pairs permuted), came_back, and cosine_a, cosine_b of
        the decoder rows (None: one of the two lacks the side).
    """
    own = PARTITIONS.index(partition)
    alive = np.flatnonzero((arrays["partition"] == own) & (arrays["firing_count"] > 0))
    back_OR = arrays["came_back"][:, alive]
    mean = arrays["correlation"][:, alive].mean(axis=0)
    order = np.lexsort((alive, -mean, -(back_OR >= 0).sum(axis=0), -(back_OR == own).sum(axis=0)))[:top]
    return [
        {
            "id": int(arrays["feature"][r]),
            "partition": partition,
            "density": float(arrays["firing_count"][r]) / info["pairs"],
            "came_back": int((arrays["came_back"][:, r] >= 0).sum()),
            "found": [_found(info, arrays, other, r) for other in range(len(back_OR))],
        }
        for r in alive[order]
    ]


def _found(info: dict[str, Any], arrays: Arrays, other: int, r: int) -> dict[str, Any]:
    sizes, match = list(info["sizes"][1 + other].values()), int(arrays["match"][other, r])
    return {
        "crosscoder": info["others"][other],
        "id": match if match >= 0 else None,
        "partition": PARTITIONS[int(np.searchsorted(np.cumsum(sizes), match, side="right"))] if match >= 0 else None,
        "correlation": float(arrays["correlation"][other, r]),
        "chance": float(arrays["chance_correlation"][other, r]),
        "came_back": bool(arrays["came_back"][other, r] >= 0),
        **{name: number_or_none(arrays[name][other, r]) for name in ("cosine_a", "cosine_b")},
    }
