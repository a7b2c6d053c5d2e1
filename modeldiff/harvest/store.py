"""The last files of a store: statistics.safetensors and store.json (see workspace/activations.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import save

from modeldiff.harvest.statistics import combine
from modeldiff.records import to_json
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import STATISTICS_NAME, STORE_NAME, SideInfo, StoreInfo
from modeldiff.workspace.stage import Work


def write_store(
    work: Work, sides: dict[str, dict[str, Any]], shards: list[int], labels: list[str], *, has_texts: bool
) -> StoreInfo:
    """Write the statistics of all rows and store.json.

    Args:
        sides: by side, the fields of SideInfo but for the norms.
        shards: pairs of each shard; their statistics were saved while the rows were written.
        labels: of the text sources.
    """
    means, infos = {}, {}
    for side in SIDES:
        means[f"mean_{side}"], median, quantiles = combine(work.resume, len(shards), side)
        infos[side] = SideInfo(**sides[side], median_norm=median, norm_quantiles=quantiles)
    info = StoreInfo(sum(shards), shards, labels, has_texts, infos)
    work.write_bytes(STATISTICS_NAME, save(means))
    work.write_json(STORE_NAME, to_json(info))
    return info


def model_name(name: str) -> str:
    """A model's name for store.json: later commands may run in another folder, so a path is made absolute."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
