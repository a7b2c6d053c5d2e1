"""The demo: harvest, train, features and steer on the bundled pair; a few minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass

from modeldiff.console import say
from modeldiff.crosscoder.run import run as run_train
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.demo.ranks import Rank, planted_ranks
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.features.table import FeatureTable
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.steer.run import run as run_steer
from modeldiff.steer.settings import SteerSettings
from modeldiff.workspace import Artifact, Workspace


@dataclass(frozen=True)
class Size:
    """How much the demo does."""

    pairs: int
    features: int
    k: int
    steps: int
    batch: int


FULL = Size(pairs=200_000, features=1024, k=16, steps=2000, batch=2048)
# Runs through every stage in well under a minute; too little training to expect planted differences.
QUICK = Size(pairs=20_000, features=256, k=16, steps=150, batch=1024)
STRENGTHS = (0.5, 1.0)


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    activations: Artifact
    crosscoder: Artifact
    features: Artifact
    steering: Artifact
    ranks: list[Rank]
    steered: Rank | None
    """The planted difference whose feature was steered; None: none was found, and the first exclusive feature was."""


def demo(workspace: Workspace, size: Size, *, device: str = "auto", force: bool = False) -> Demo:
    """Run the pipeline; stages that are up to date answer at once."""
    workspace.create()
    texts = workspace.folder / "demo-texts.jsonl"
    write_probing_corpus(texts)
    say("1/4 harvest: both models read the same texts")
    activations = run_harvest(
        HarvestSettings(
            model_a=str(MODEL_A), model_b=str(MODEL_B), texts=(str(texts),), pairs=size.pairs, device=device
        ),
        workspace,
        force=force,
    )
    say("2/4 train: one dictionary, with parts that belong to one model alone")
    crosscoder = run_train(
        TrainSettings(
            activations=activations.ref,
            features=size.features,
            k=size.k,
            steps=size.steps,
            batch=size.batch,
            device=device,
        ),
        workspace,
        force=force,
    )
    say("3/4 features: what each one fires on, and what predicts it")
    features = run_features(FeaturesSettings(crosscoder=crosscoder.ref, device=device), workspace, force=force)
    table = FeatureTable(features)
    ranks = planted_ranks(table)
    say("4/4 steer: push one of them")
    steered = min((one for one in ranks if one.rank), key=lambda one: one.rank or 0, default=None)
    steering = run_steer(_steering(table, steered, crosscoder, features, device), workspace, force=force)
    return Demo(activations, crosscoder, features, steering, ranks, steered)


def _steering(
    table: FeatureTable, steered: Rank | None, crosscoder: Artifact, features: Artifact, device: str
) -> SteerSettings:
    """Push the best-ranked planted feature where the habit does not belong: on the control's question."""
    if steered and steered.feature is not None:
        feature, prompts = steered.feature, steered.habit.control_prompts()[:2]
    else:
        feature, prompts = strongest_claim(table), ("Question: ",)
    return SteerSettings(
        model="B" if table.partition_F[feature] == "B" else "A",
        feature=feature,
        strength=STRENGTHS,
        prompt=prompts,
        crosscoder=crosscoder.ref,
        features=features.ref,
        max_new_tokens=40,
        device=device,
    )


def strongest_claim(table: FeatureTable) -> int:
    """The first alive feature of the listings of A, of B, or, when nothing is exclusive, of the shared ones."""
    listed = [i for partition in ("A", "B", "shared") for i in table.select(exclusive=partition, top=1).ids]
    return next((i for i in listed if table.statistics["firing_count"][i] > 0), listed[0])
