"""The harvest stage: check what can be checked without a model in memory, then plan, capture A, capture B."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from modeldiff.console import say
from modeldiff.harvest.capture import Capture, capture_side
from modeldiff.harvest.imports import build_import, find_arrays, import_bytes, import_inputs
from modeldiff.harvest.planner import Cursor, Look, Planner, bytes_needed, planning_processes
from modeldiff.harvest.report import ALIGNMENT_NAME, Counts, alignment_report
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.harvest.store import missing_shards, write_store
from modeldiff.lm.device import device_and_dtype, resolve_device
from modeldiff.lm.geometry import Geometry
from modeldiff.lm.load import LanguageModel, load_model, read_geometry
from modeldiff.lm.ref import ModelRef, locate, model_input, refs_of
from modeldiff.sides import SIDES
from modeldiff.texts.sources import LeftOut, Source, parse_source, source_digest
from modeldiff.texts.tokenize import Reader, open_reader
from modeldiff.workspace.artifact import Artifact, Input
from modeldiff.workspace.files import free_bytes, human_bytes, require_free
from modeldiff.workspace.free import free_memory
from modeldiff.workspace.ranks import Ranks, produce_together, ranks
from modeldiff.workspace.rehearsal import Size, rehearse
from modeldiff.workspace.stage import Build, Order, Work
from modeldiff.workspace.workspace import Workspace

KIND = "activations"
# Counted up when the same settings and inputs would give other pairs, rows or files.
SCHEMA = 1
_REHEARSED = 10_000


@dataclass(frozen=True)
class Pair:
    """The two models of a harvest, as far as they are known without their weights. All by side."""

    ref: dict[str, ModelRef]
    geometry: dict[str, Geometry]
    layer: dict[str, int]
    context: dict[str, int]
    """Most tokens read at once: the setting, or fewer where a model has fewer positions."""

    @property
    def widths(self) -> dict[str, int]:
        return {side: self.geometry[side].width for side in SIDES}


def run(settings: HarvestSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Harvest paired activations, or import them; labelled `name`, and also when the workspace has them already
    (`force`). Under torchrun every rank calls this, and each gets the artifact. Raises InputError: settings, texts,
    layers or tokenizers that cannot be used; MachineError: too little disk or memory, activations that are not finite,
    or a process that was lost; DamagedError: a file is not what it should be."""
    ours = ranks()
    return produce_together(ours, workspace, partial(_prepare, settings, workspace, ours), name=name, force=force)


def estimate(settings: HarvestSettings, workspace: Workspace) -> dict[str, Any]:
    """From configurations, tokenizers and the first documents: pairs (asked for), pairs_in_texts
    (estimate; None when unknown), bytes_needed, bytes_free, fits, and by side "a" and "b": model, layer, width; unless
    imported also layers (of the model), context, and kept and characters (share of tokens and of characters in pairs).
    Raises as `run`, apart from a disk that is too small."""
    sides: dict[str, dict[str, Any]]
    if settings.importing:
        arrays = find_arrays(settings)
        pairs, in_texts, needed = arrays["a"].rows, None, import_bytes(settings, arrays)
        named = {side: {name: getattr(settings, f"{name}_{side}") for name in ("model", "layer")} for side in SIDES}
        sides = {side: {**named[side], "width": arrays[side].width} for side in SIDES}
    else:
        sources = [parse_source(entry) for entry in settings.texts]
        pair = open_pair(settings)
        seen = Planner(settings, sources, open_readers(pair), pair.context).look()
        pairs, in_texts = settings.pairs, seen.pairs_in_texts
        needed = bytes_needed(seen.pairs, pair.widths, settings.storage, seen.plan_bytes_per_pair)
        sides = {
            side: {
                "model": pair.ref[side].name,
                "layers": pair.geometry[side].n_layers,
                "layer": pair.layer[side],
                "width": pair.geometry[side].width,
                "context": pair.context[side],
                "kept": seen.shares[side]["tokens"],
                "characters": seen.shares[side]["characters"],
            }
            for side in SIDES
        }
    free = free_bytes(workspace.folder)
    sizes = {"pairs": pairs, "pairs_in_texts": in_texts, "bytes_needed": needed, "bytes_free": free}
    return {**sizes, "fits": needed <= free, **sides}


def plan(settings: HarvestSettings, workspace: Workspace) -> dict[str, Any]:
    """For `--plan`: `estimate`, and a `rehearsal` (see there), for which both models are loaded; where that is not to
    be done, `no_time` says why. Raises as `run`."""
    seen = estimate(settings, workspace)
    if settings.importing:
        return seen
    if why_not := why_not_timed(settings):
        return {**seen, "no_time": why_not}
    pairs = min(settings.pairs, seen["pairs_in_texts"] or settings.pairs)
    planned = pairs // planning_processes(pairs)
    rehearsed = {
        "pairs": Size(pairs, _REHEARSED, ("capture",)),
        "pairs planned": Size(planned, _REHEARSED, ("plan",)),
    }
    return {**seen, "rehearsal": rehearse(run, settings, rehearsed, workspace)}


def why_not_timed(settings: HarvestSettings) -> str | None:
    """Why the models cannot be loaded here for a rehearsal; None: they can."""
    sizes = [sum(path.stat().st_size for path in locate(ref).files) for ref in refs_of(settings).values()]
    if not all(sizes):
        return "the models are on the hub: with local folders a small part is timed"
    if resolve_device(settings.device).type == "cpu" and 2 * max(sizes) > free_memory():
        return f"the models do not fit into memory here ({human_bytes(free_memory())} free)"
    return None


def open_pair(settings: HarvestSettings) -> Pair:
    """Both models' configurations, and the layers and lengths that follow."""
    ref = refs_of(settings)
    geometry, layer, context = {}, {}, {}
    for side in SIDES:
        geometry[side] = read_geometry(ref[side])
        layer[side] = geometry[side].layer(getattr(settings, f"layer_{side}"), f"--layer-{side}")
        context[side] = min(settings.context, geometry[side].max_positions or settings.context)
    return Pair(ref, geometry, layer, context)


def open_readers(pair: Pair) -> dict[str, Reader]:
    return {side: open_reader(pair.ref[side], side) for side in SIDES}


def _prepare(settings: HarvestSettings, workspace: Workspace, ours: Ranks) -> tuple[Order, Build]:
    digest = workspace.digest_of
    if settings.importing:
        arrays = find_arrays(settings)
        order = Order(KIND, settings, import_inputs(settings, arrays, digest), SCHEMA)
        # One process imports; the others have nothing to do.
        return order, partial(build_import, settings=settings, arrays=arrays) if ours.first else lambda _work: {}
    sources = [parse_source(entry) for entry in settings.texts]
    pair = open_pair(settings)
    device, dtype, names = device_and_dtype(settings, ours.local_rank)
    inputs = {f"model_{side}": model_input(ref, digest) for side, ref in pair.ref.items()}
    for number, (source, entry) in enumerate(zip(sources, settings.texts, strict=True), 1):
        inputs[f"text_{number}"] = Input(entry, source_digest(source, digest))
    resolved = {
        **{f"layer_{side}": pair.layer[side] for side in SIDES},
        "dtype": names["dtype"],
        "texts": [f"{s.label}@{s.weight:g}" for s in sources],
    }

    def load(side: str) -> LanguageModel:
        ref, layers = pair.ref[side], pair.geometry[side].n_layers
        say(f"model {side.upper()}: {ref.short_name}, layer {pair.layer[side]} of {layers}, on {device}")
        return load_model(ref, device, dtype)

    def build(work: Work) -> dict[str, Any]:
        """Rank 0 plans; every rank captures its part of the shards that are missing; rank 0 finishes."""
        cursor, missing = ours.broadcast(_plan(work, settings, sources, pair) if ours.first else None)
        for side in SIDES:
            capture = Capture(side, pair.layer[side], settings.storage, settings.batch_tokens, cursor.labels)
            capture_side(work, capture, cursor.shards, ours.mine(missing[side]), partial(load, side))
        ours.barrier()
        if not ours.first:
            return {}
        work.environment.update(names)
        if ours.world > 1:
            work.environment["processes"] = ours.world
        return _finish(work, settings, pair, cursor)

    return Order(KIND, settings, inputs, SCHEMA, resolved), build


def _plan(
    work: Work, settings: HarvestSettings, sources: list[Source], pair: Pair
) -> tuple[Cursor, dict[str, list[int]]]:
    """The plan, and by side the shards whose rows are still to be captured."""
    planner = Planner(settings, sources, open_readers(pair), pair.context, pair.ref)
    seen = planner.look()
    _require_disk(work, settings, pair, seen.pairs, seen)
    cursor = planner.plan(work, seen.pairs)
    _say_plan(settings, cursor)
    _require_disk(work, settings, pair, cursor.pairs, seen)
    return cursor, {side: missing_shards(work, cursor.shards, side) for side in SIDES}


def _require_disk(work: Work, settings: HarvestSettings, pair: Pair, pairs: int, seen: Look) -> None:
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
    if cursor.counts["left_out"]["records"]:
        say(f"plan: {LeftOut(cursor.counts['left_out'])}; see {ALIGNMENT_NAME}, or use --strict")
    lost = cursor.counts["lost_tails"]
    if lost["documents"]:
        say(
            f"plan: {lost['documents']:,} documents end in text that was not aligned "
            f"({lost['tokens_a']:,} tokens of A, {lost['tokens_b']:,} of B); see {ALIGNMENT_NAME}"
        )


def _finish(work: Work, settings: HarvestSettings, pair: Pair, cursor: Cursor) -> dict[str, Any]:
    stored = write_store(work, settings, pair.widths, dict(pair.layer), cursor.shards, cursor.labels)
    report = alignment_report(settings.align, settings.pair_at, cursor.pairs, cursor.pairs_by_source, cursor.counts)
    work.write_json(ALIGNMENT_NAME, report)
    shares = report["shares_kept"]
    return {
        "pairs": cursor.pairs,
        "pairs_asked_for": settings.pairs,
        "texts_ran_out": cursor.ran_out,
        **{name: report[name] for name in ("documents", "documents_without_pairs", "pairs_by_source")},
        "tokens_kept": {side: shares[side]["tokens"] for side in SIDES},
        "characters_kept": {side: shares[side]["characters"] for side in SIDES},
        "lost_tails": report["lost_tails"]["documents"],
        "records_left_out": report["left_out"]["records"],
        "median_norm": stored["median_norm"],
    }
