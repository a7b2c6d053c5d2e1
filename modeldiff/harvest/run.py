"""The harvest stage: check what can be checked without a model in memory, then plan, capture A, capture B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modeldiff.console import say
from modeldiff.harvest.capture import Capture, capture_side
from modeldiff.harvest.imports import estimate_import, prepare_import
from modeldiff.harvest.planner import Cursor, make_plan
from modeldiff.harvest.report import Counts
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.harvest.sizes import Look, bytes_needed, expected_pairs, look
from modeldiff.harvest.store import model_name, write_store
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.geometry import Geometry, read_geometry
from modeldiff.lm.load import load_model, load_tokenizer
from modeldiff.lm.ref import ModelRef, model_identity
from modeldiff.sides import SIDES
from modeldiff.texts.sources import Source, parse_sources, source_digest
from modeldiff.texts.tokenize import Reader
from modeldiff.workspace.activations import rows_name
from modeldiff.workspace.artifact import Artifact, Input
from modeldiff.workspace.files import free_bytes, require_free
from modeldiff.workspace.ranks import Ranks, produce_together, ranks
from modeldiff.workspace.stage import Build, Order, Work
from modeldiff.workspace.workspace import Workspace

KIND = "activations"
# Counted up when the same settings and inputs would give other pairs, rows or files.
SCHEMA = 1
ALIGNMENT_NAME = "alignment.json"


@dataclass(frozen=True)
class Pair:
    """The two models of a harvest, as far as they are known without their weights."""

    ref: dict[str, ModelRef]
    geometry: dict[str, Geometry]
    layer: dict[str, int]
    context: dict[str, int]
    """Most tokens per window: the setting, or fewer where a model has fewer positions."""

    @property
    def widths(self) -> dict[str, int]:
        return {side: self.geometry[side].width for side in SIDES}


def run(settings: HarvestSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Harvest paired activations, or import them. Under torchrun every rank calls this, and each gets the artifact.

    Args:
        name: a label for the artifact; force: run even when the workspace has it already.

    Raises:
        InputError: settings, texts, layers or tokenizers that cannot be used.
        MachineError: too little disk or memory, activations that are not finite, or a process that was lost.
        DamagedError: a file is not what it should be.
    """
    ours = ranks()
    return produce_together(ours, workspace, partial(_prepare, settings, workspace, ours), name=name, force=force)


def _prepare(settings: HarvestSettings, workspace: Workspace, ours: Ranks) -> tuple[Order, Build]:
    """What is wanted, and how it is made."""
    workspace.create()
    digest = workspace.digest_of
    if settings.importing:
        order, build = prepare_import(settings, digest, kind=KIND, schema=SCHEMA)
        return order, build if ours.first else _nothing
    sources = parse_sources(settings.texts)
    pair = open_pair(settings)
    device = resolve_device(settings.device, ours.local_rank)
    dtype = resolve_dtype(settings.dtype, device)
    inputs = _inputs(settings, sources, pair, digest)
    resolved = {
        **{f"layer_{side}": pair.layer[side] for side in SIDES},
        "dtype": str(dtype).removeprefix("torch."),
        "texts": [f"{s.label}@{s.weight:g}" for s in sources],
    }
    order = Order(KIND, settings, inputs, SCHEMA, resolved)
    return order, partial(_build, settings=settings, sources=sources, pair=pair, device=device, dtype=dtype, ours=ours)


def _nothing(_work: Work) -> dict[str, Any]:
    """The part of the other processes in what one does alone."""
    return {}


def estimate(settings: HarvestSettings, workspace: Workspace) -> dict[str, Any]:
    """What a harvest would take and give, from configurations, tokenizers and the first documents; for `--dry-run`.

    Returns:
        pairs (asked for), pairs_in_texts (estimate; None when unknown), bytes_needed, bytes_free, fits,
        documents_looked_at, and by side "a" and "b": model, layers (of the model), layer, width, context, kept (share
        of tokens), characters.

    Raises:
        As `run`, apart from a disk that is too small.
    """
    if settings.importing:
        return estimate_import(settings, workspace)
    sources = parse_sources(settings.texts)
    pair = open_pair(settings)
    seen = look(settings, sources, open_readers(settings, pair), pair.context)
    needed = bytes_needed(expected_pairs(settings, seen), pair.widths, settings.storage, seen.plan_bytes_per_pair)
    free = free_bytes(workspace.folder)
    return {
        "pairs": settings.pairs,
        "pairs_in_texts": seen.pairs_in_texts,
        "bytes_needed": needed,
        "bytes_free": free,
        "fits": needed <= free,
        "documents_looked_at": seen.documents,
        **{side: _side_estimate(pair, side, seen) for side in SIDES},
    }


def open_pair(settings: HarvestSettings) -> Pair:
    """Both models' configurations, and the layers and lengths that follow. Raises InputError."""
    ref = {
        "a": ModelRef(str(settings.model_a), settings.revision_a, settings.trust_remote_code),
        "b": ModelRef(str(settings.model_b), settings.revision_b, settings.trust_remote_code),
    }
    geometry = {side: read_geometry(ref[side]) for side in SIDES}
    asked = {"a": settings.layer_a, "b": settings.layer_b}
    layer = {side: geometry[side].layer(asked[side], f"--layer-{side}") for side in SIDES}
    context = {side: min(settings.context, geometry[side].max_positions or settings.context) for side in SIDES}
    return Pair(ref, geometry, layer, context)


def open_readers(settings: HarvestSettings, pair: Pair) -> dict[str, Reader]:
    """Both tokenizers."""
    return {side: Reader(load_tokenizer(pair.ref[side]), settings.align == "offsets") for side in SIDES}


def _side_estimate(pair: Pair, side: str, seen: Look) -> dict[str, Any]:
    return {
        "model": pair.ref[side].name,
        "layers": pair.geometry[side].n_layers,
        "layer": pair.layer[side],
        "width": pair.geometry[side].width,
        "context": pair.context[side],
        "kept": seen.shares[side]["tokens"],
        "characters": seen.shares[side]["characters"],
    }


def _inputs(
    settings: HarvestSettings, sources: list[Source], pair: Pair, digest: Callable[[Path], str]
) -> dict[str, Input]:
    inputs = {}
    for side in SIDES:
        identity = model_identity(pair.ref[side], digest)
        inputs[f"model_{side}"] = Input(pair.ref[side].name, identity.get("digest") or identity["commit"])
    for number, (source, entry) in enumerate(zip(sources, settings.texts, strict=True), 1):
        inputs[f"text_{number}"] = Input(entry, source_digest(source, digest))
    return inputs


def _build(
    work: Work,
    *,
    settings: HarvestSettings,
    sources: list[Source],
    pair: Pair,
    device: torch.device,
    dtype: torch.dtype,
    ours: Ranks,
) -> dict[str, Any]:
    """Rank 0 plans; every rank captures its part of the shards that are missing; rank 0 finishes."""
    cursor, missing = ours.broadcast(_plan(work, settings, sources, pair) if ours.first else None)
    for side in SIDES:
        capture = Capture(side, pair.layer[side], settings.storage, settings.batch_tokens, cursor.labels)
        capture_side(work, capture, cursor.shards, ours.mine(missing[side]), partial(_load, pair, side, device, dtype))
    ours.barrier()
    if not ours.first:
        return {}
    work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
    if ours.world > 1:
        work.environment["processes"] = ours.world
    return finish(work, settings, pair, cursor)


def _plan(
    work: Work, settings: HarvestSettings, sources: list[Source], pair: Pair
) -> tuple[Cursor, dict[str, list[int]]]:
    """The plan, and by side the shards whose rows are still to be captured."""
    readers = open_readers(settings, pair)
    seen = look(settings, sources, readers, pair.context)
    _require_disk(work, settings, pair, expected_pairs(settings, seen), seen)
    cursor = make_plan(work, settings, sources, readers, pair.context)
    _say_plan(settings, cursor)
    _require_disk(work, settings, pair, cursor.pairs, seen)
    shards = range(len(cursor.shards))
    return cursor, {side: [shard for shard in shards if not work.has(rows_name(shard, side))] for side in SIDES}


def finish(work: Work, settings: HarvestSettings, pair: Pair, cursor: Cursor) -> dict[str, Any]:
    """Write statistics, store.json and alignment.json; give the metrics."""
    sides = {
        side: {
            "width": pair.geometry[side].width,
            "encoding": settings.storage,
            "model": model_name(pair.ref[side].name),
            "revision": pair.ref[side].revision,
            "layer": pair.layer[side],
            "trust_remote_code": settings.trust_remote_code,
        }
        for side in SIDES
    }
    store = write_store(work, sides, cursor.shards, cursor.labels, has_texts=True)
    counts = Counts(cursor.counts)
    shares = counts.shares()
    work.write_json(
        ALIGNMENT_NAME,
        {
            "align": settings.align,
            "pair_at": settings.pair_at,
            "pairs": cursor.pairs,
            "pairs_by_source": _sorted(cursor.pairs_by_source),
            "shares_kept": shares,
            **_sorted(counts.data),
        },
    )
    return {
        "pairs": cursor.pairs,
        "pairs_asked_for": settings.pairs,
        "texts_ran_out": cursor.ran_out,
        "documents": counts.data["documents"],
        "documents_without_pairs": counts.data["documents_without_pairs"],
        "pairs_by_source": _sorted(cursor.pairs_by_source),
        "tokens_kept": {side: shares[side]["tokens"] for side in SIDES},
        "characters_kept": {side: shares[side]["characters"] for side in SIDES},
        "lost_tails": counts.data["lost_tails"]["documents"],
        "median_norm": {side: store.sides[side].median_norm for side in SIDES},
    }


def _load(pair: Pair, side: str, device: torch.device, dtype: torch.dtype) -> Any:
    ref = pair.ref[side]
    say(
        f"model {side.upper()}: {ref.short_name}, layer {pair.layer[side]} of "
        f"{pair.geometry[side].n_layers}, on {device}"
    )
    return load_model(ref, device, dtype)


def _require_disk(work: Work, settings: HarvestSettings, pair: Pair, pairs: int, seen: Look) -> None:
    """Raise MachineError unless what is still to be written fits."""
    needed = bytes_needed(pairs, pair.widths, settings.storage, seen.plan_bytes_per_pair)
    written = sum(path.stat().st_size for path in (work.folder / "shards").glob("*.h5"))
    require_free(work.folder, max(0, needed - written), f"a harvest of {pairs:,} pairs")


def _say_plan(settings: HarvestSettings, cursor: Cursor) -> None:
    shares = Counts(cursor.counts).shares()
    kept = ", ".join(f"{shares[side]['tokens']:.0%} of {side.upper()}'s tokens" for side in SIDES)
    if cursor.ran_out:
        say(
            f"only {cursor.pairs:,} of the {settings.pairs:,} pairs asked for: the texts ran out "
            "(going on with these; give more --texts for more)"
        )
    say(f"plan: {cursor.pairs:,} pairs in {len(cursor.shards)} shards; kept {kept}")
    lost = cursor.counts["lost_tails"]
    if lost["documents"]:
        say(
            f"plan: {lost['documents']:,} documents end in text that was not aligned "
            f"({lost['tokens_a']:,} tokens of A, {lost['tokens_b']:,} of B); see {ALIGNMENT_NAME}"
        )


def _sorted(value: Any) -> Any:
    """The same data with sorted keys, so that the file does not depend on which character came first."""
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value
