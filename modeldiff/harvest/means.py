"""Activations averaged along their texts: an activations artifact in, another one out, without a model.

A small shift that lasts along a whole text carries what the text is about or how it is answered, and is lost on a
dictionary that reconstructs single tokens. In means over the last pairs it is what is left. The texts and pairs stay
the same, so that a crosscoder of the means is trained and listed like any other.

Legend: N rows (pairs), D width.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import h5py
import torch

from modeldiff.console import progress, say
from modeldiff.errors import InputError
from modeldiff.harvest.means_settings import MeansSettings
from modeldiff.harvest.statistics import save_shard_statistics
from modeldiff.harvest.store import write_store
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import DATASET, ActivationStore, Block, plan_name, rows_name
from modeldiff.workspace.artifact import Artifact
from modeldiff.workspace.bits import ENCODINGS, bytes_per_value, create_dataset, write_rows
from modeldiff.workspace.files import require_free
from modeldiff.workspace.means import running_mean
from modeldiff.workspace.plan import ShardPlan, write_plan
from modeldiff.workspace.stage import Order, Work, produce
from modeldiff.workspace.workspace import Workspace

KIND = "activations"
# Counted up when the same settings and activations would give other rows.
SCHEMA = 1


def run(settings: MeansSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Average the activations of another artifact along their texts.

    Raises:
        InputError: there are no such activations, they have no texts, or are means already.
        MachineError: too little disk.
        DamagedError: a file of theirs is damaged.
    """
    source = workspace.find(KIND, settings.activations)
    if settings.activations is None:
        say(f"means of {source.ref} (the latest)")
    store = ActivationStore(source)
    if store.info.mean_over > 1:
        raise InputError(
            f"{source.ref} holds means over {store.info.mean_over} pairs already: give the activations they were made "
            "from with --activations"
        )
    if not store.info.has_texts:
        store.plan(0)  # says that there are no texts, and what to do
    order = Order(KIND, settings, {"activations": source.as_input()}, SCHEMA)
    return produce(workspace, order, partial(_build, settings=settings, store=store), name=name, force=force)


def _build(work: Work, *, settings: MeansSettings, store: ActivationStore) -> dict[str, Any]:
    info = store.info
    needed = sum(info.pairs * side.width * bytes_per_value(side.encoding) for side in info.sides.values())
    require_free(work.folder, needed, f"means of {info.pairs:,} pairs")
    with progress("means", len(SIDES) * info.pairs, "pairs") as bar:
        for shard, pairs in enumerate(info.shards):
            plan = store.plan(shard)
            if not work.has(plan_name(shard)):
                temporary = work.temporary(plan_name(shard))
                write_plan(temporary, plan)
                work.commit(temporary, plan_name(shard))
            for side in SIDES:
                if not work.has(rows_name(shard, side)):
                    _write(work, store, plan, shard, side, settings.over)
                bar.advance(pairs)
    kept = ("width", "encoding", "model", "revision", "layer", "trust_remote_code")
    sides = {side: {name: dataclasses.asdict(one)[name] for name in kept} for side, one in info.sides.items()}
    written = write_store(work, sides, info.shards, info.sources, has_texts=True, mean_over=settings.over)
    return {"pairs": info.pairs, "median_norm": {side: written.sides[side].median_norm for side in SIDES}}


def _write(work: Work, store: ActivationStore, plan: ShardPlan, shard: int, side: str, over: int) -> None:
    x_ND = store.read_side(side, Block(shard, 0, store.info.shards[shard]))
    encoding = store.info.sides[side].encoding
    mean_ND = means_of(x_ND, torch.from_numpy(plan.pairs.document), over).to(ENCODINGS[encoding][0])
    # Before the rows are committed: whoever finds the rows finds their statistics.
    save_shard_statistics(work.resume, shard, side, mean_ND)
    temporary = work.temporary(rows_name(shard, side))
    with h5py.File(temporary, "w") as file:
        dataset = create_dataset(file, DATASET, len(mean_ND), mean_ND.shape[1], encoding)
        write_rows(dataset, 0, mean_ND)
    work.commit(temporary, rows_name(shard, side))


def means_of(x_ND: torch.Tensor, document_N: torch.Tensor, over: int) -> torch.Tensor:
    """(N, D) float32: `running_mean` of each document's rows, which are consecutive."""
    mean_ND = torch.empty(x_ND.shape, dtype=torch.float32)
    _, count = torch.unique_consecutive(document_N, return_counts=True)
    start = 0
    for rows in count.tolist():
        mean_ND[start : start + rows] = running_mean(x_ND[start : start + rows], over).float()
        start += rows
    return mean_ND
