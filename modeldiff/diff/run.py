"""Harvest, train, features, stitch, continuations, contrast, report, in this order; what is up to date answers at
once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from modeldiff.console import say
from modeldiff.contrast.continuations import run as run_continuations
from modeldiff.contrast.run import run as run_contrast
from modeldiff.contrast.settings import ContinuationsSettings, ContrastSettings
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run as run_train
from modeldiff.diff.settings import DiffSettings
from modeldiff.diff.steering import steer_listed
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run as run_stitch
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.run import estimate
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.report.run import run as run_report
from modeldiff.report.settings import ReportSettings
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.ranks import ranks
from modeldiff.workspace.workspace import check_name


@dataclass(frozen=True)
class Diff:
    activations: Artifact
    crosscoder: Artifact
    features: Artifact
    stitch: Artifact
    continuations: Artifact
    contrast: Artifact
    report: Artifact


def run(settings: DiffSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Diff:
    """All stages; under torchrun every rank calls this, and what is not shared waits for the first one. name: of the
    contrast; force: run every stage even when it is up to date. Raises InputError, MachineError, DamagedError: as the
    stages do."""
    harvest = harvest_of(settings)
    check_name(name)
    ranks()  # from here on one process speaks
    say_costs(settings, harvest, workspace)
    say("1/6 harvest: both models read the same texts")
    activations = run_harvest(harvest, workspace, force=force)
    say("2/6 train: one dictionary, with parts that belong to one model alone")
    training = training_of(settings, int(activations.metrics["pairs"]))
    crosscoder = run_train(dataclasses.replace(training, activations=activations.ref), workspace, force=force)
    say("3/6 features: what each one fires on, and what predicts it")
    device = settings.device
    features = run_features(FeaturesSettings(crosscoder=crosscoder.ref, device=device), workspace, force=force)
    stitch = run_stitch(StitchSettings(activations=activations.ref, device=device), workspace, force=force)
    say("4/6 continuations: both models go on from the same places")
    continuations = run_continuations(settings.part(ContinuationsSettings), workspace, force=force)
    say("5/6 contrast: where something is so, one says this and the other that")
    compared = settings.part(ContrastSettings, continuations=continuations.ref, crosscoder=crosscoder.ref)
    contrast = run_contrast(compared, workspace, name=name, force=force)
    say("6/6 report: what a push along the features of the list does, and all of it in one page")
    if settings.steer:
        steer_listed(settings, contrast, continuations, features, workspace)
    report = run_report(ReportSettings(contrast=contrast.ref), workspace, force=force)
    return Diff(activations, crosscoder, features, stitch, continuations, contrast, report)


def harvest_of(settings: DiffSettings) -> HarvestSettings:
    return settings.part(HarvestSettings, seed=0)  # the same pairs for every seed of the training


def training_of(settings: DiffSettings, pairs: int) -> TrainSettings:
    # Few texts are no reason to stop: a batch is at most a quarter of the pairs.
    return settings.part(TrainSettings, batch=max(1, min(2048, pairs // 4)))


def say_costs(settings: DiffSettings, harvest: HarvestSettings, workspace: Workspace) -> None:
    seen = estimate(harvest, workspace)
    there = seen["pairs_in_texts"]
    pairs = settings.pairs if there is None else min(settings.pairs, int(there))
    widths = [seen[side]["width"] for side in ("a", "b")]
    features = settings.features or round(8 * sum(widths) / 2)
    parameters = 2 * features * sum(widths) / 1e6
    say(
        f"costs: about {pairs:,} pairs on {seen['bytes_needed'] / 1e9:.2g} GB of disk "
        f"({seen['bytes_free'] / 1e9:,.0f} GB free); a crosscoder of {features:,} features ({parameters:,.1f} million "
        f"parameters); {settings.places:,} continuations by each model. Every stage is kept: the same command goes on "
        "where it stopped"
    )
