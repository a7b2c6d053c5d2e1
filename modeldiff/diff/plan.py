"""What a diff would take: time, memory and disk of each stage. For `--plan`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from modeldiff.catalogue.table import FeatureTable
from modeldiff.contrast.continuations import count_documents
from modeldiff.contrast.settings import ContinuationsSettings, ContrastSettings
from modeldiff.crosscoder.plan import Job, forecast
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.run import precision_of
from modeldiff.crosscoder.training.trainer import Recipe
from modeldiff.crosscoder.units import Measured
from modeldiff.diff.run import harvest_of, run, training_of
from modeldiff.diff.settings import DiffSettings
from modeldiff.diff.steering import push_each
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.planner import planning_processes
from modeldiff.harvest.run import estimate, why_not_timed
from modeldiff.lm.device import resolve_device
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.bits import bytes_per_value, chunk_rows
from modeldiff.workspace.files import human_bytes
from modeldiff.workspace.rehearsal import Size, rehearse

# Enough for a whole batch of training; for the caches of a processor to be as full as in a long run.
_PAIRS, _STEPS, _PLACES = 20_000, 60, 512
# Of the run before it.
_FIRST_PAIRS, _FIRST_STEPS, _FIRST_PLACES = 2000, 4, 64
# Bytes that were measured: of an active feature of a pair, in all copies of a sample of codes; of one more place.
CODE_BYTES, _PLACE_BYTES = 96, {"continuations": 70_000, "contrast": 60_000}
# For the cause of an entry both models sample, and one of them twice more.
_SAMPLED_AGAIN = 4
# Values of a dictionary that is rehearsed as large as it is planned; else a part of it is.
_VALUES = 1 << 24


def plan(settings: DiffSettings, workspace: Workspace) -> dict[str, Any]:
    """For `--plan`: what is known without a run, and a `rehearsal` of all stages (see `rehearse`); where that is not to
    be done, `no_time` says why. Raises as `run`."""
    harvest = harvest_of(settings)
    seen = estimate(harvest, workspace)
    pairs = min(settings.pairs, seen["pairs_in_texts"] or settings.pairs)
    widths = (seen["a"]["width"], seen["b"]["width"])
    training = training_of(settings, pairs)
    recipe = make_recipe(training, widths=widths, pairs=pairs)
    features = recipe.n_a_only + recipe.n_shared + recipe.n_b_only
    known = {
        "pairs": pairs,
        "features": features,
        "k": recipe.k,
        "steps": recipe.steps,
        "places": settings.places,
        **{side: {name: seen[side][name] for name in ("model", "layer", "width")} for side in SIDES},
    }
    trained = _forecast(training, recipe, widths, pairs, harvest.storage, workspace)
    both, free = seen["bytes_needed"] + trained["disk"]["needed"], seen["bytes_free"]
    problems = trained["problems"]
    if not problems and both > free and not workspace.artifacts("activations"):
        problems = [
            f"disk in {workspace.folder}: {human_bytes(both)} needed for activations and training, {human_bytes(free)} "
            "free; use fewer --pairs or --features, or a larger disk"
        ]
    known |= {"problems": problems}
    if "device" in trained["memory"]:
        known["device_memory_of_training"] = trained["memory"]["device"]["needed"]
    if why_not := why_not_timed(harvest):
        time, memory, disk = (trained[name] for name in ("time", "memory", "disk"))
        counted = {
            "time": time["run"],
            "memory": {place: memory[place]["needed"] for place in memory.keys() - {"parts"}},
        }
        counted |= {"disk": disk["needed"]}
        return {**known, "disk_of_activations": seen["bytes_needed"], "training": counted, "no_time": why_not}
    smaller = max(1024, recipe.k, _VALUES // sum(widths))
    sampled = min(FeaturesSettings().sample_pairs, pairs)
    documents = count_documents(settings.part(ContinuationsSettings))
    read = ("read", "next words", "align places", "features by", "features before")
    sizes = {
        "pairs": _pairs(pairs, "capture", "features: pass", disk=("activations",)),
        "pairs planned": _pairs(pairs // planning_processes(pairs), "plan"),
        "sampled pairs": _pairs(
            sampled, "features: read", "features: predictability", "features: twins",
            memory={"features": CODE_BYTES * recipe.k},
        ),
        "stitched pairs": _pairs(min(StitchSettings().pairs, pairs), "stitch: pass", "stitch: held-out"),
        "features": Size(features, smaller, ("features:", "features before", "contrast"), ("features",)),
        "steps": Size(recipe.steps, _STEPS, ("train",), first=_FIRST_STEPS),
        "documents": Size(documents, _PLACES, read, first=_FIRST_PLACES),
        "places": Size(
            settings.places, _PLACES, ("continuations", "contrast"), ("continuations",), _PLACE_BYTES, _FIRST_PLACES
        ),
    }  # fmt: skip

    def rehearsed(small: DiffSettings, there: Workspace) -> Artifact:
        """All stages, and a push where a diff pushes the features of its list."""
        made = run(dataclasses.replace(small, steer=False), there)
        if settings.steer:
            table = FeatureTable(made.features)
            largest_F = np.where(table.partition_F == "B", 0, table.statistics["max_activation"])
            push_each(settings, {int(largest_F.argmax()): "A"}, made.continuations, [], made.features, there)
        return made.contrast

    found = rehearse(rehearsed, dataclasses.replace(settings, k=recipe.k), sizes, workspace)
    times, one = found["time"], found["stages"]["crosscoder"]
    more = trained["time"]["run"] - times["parts"]["train"]
    times["parts"]["train"] += more
    times["run"] += more
    one |= {
        "time": one["time"] + more,
        "peak_memory": max(one["peak_memory"], trained["memory"]["host"]["needed"]),
        "written": max(one["written"], trained["disk"]["artifact"]),
    }
    return {**known, "rehearsal": found, "at_most": _at_most(settings, found)}


def _pairs(full: int, *parts: str, **more: Any) -> Size:
    return Size(full, _PAIRS, parts, first=_FIRST_PAIRS, **more)


def _forecast(
    training: TrainSettings, recipe: Recipe, widths: tuple[int, int], pairs: int, storage: str, workspace: Workspace
) -> dict[str, Any]:
    """What the training would take, before there are activations; see `forecast`."""
    device = resolve_device(training.device)
    like = {side: Measured(torch.zeros(width), 1.0) for side, width in zip(SIDES, widths, strict=True)}
    job = Job(
        config=initial_config(training, recipe, like),
        recipe=recipe,
        precision=precision_of(training, device),
        device=device,
        pairs=pairs,
        pair_bytes=sum(widths) * bytes_per_value(storage),
        block_rows=min(chunk_rows(width, storage) for width in widths),
        buffer_bytes=training.buffer_mib << 20,
    )
    return forecast(job, workspace.folder)


def _at_most(settings: DiffSettings, found: dict[str, Any]) -> dict[str, float]:
    """Seconds of what waits for the list, if that is as long as it may be."""
    times, steering = found["time"], 0.0
    if settings.steer:
        steering = found["stages"].pop("steering")["time"]
        times["rest"] -= steering - times["parts"].pop("steer")
        times["run"] -= steering
    sampled = ContrastSettings().cause_places * _SAMPLED_AGAIN / (2 * settings.places)
    cause = settings.top * sampled * times["parts"]["continuations"] if settings.cause else 0.0
    return {"cause": cause, "steering": settings.top * steering}
