"""The demo: `modeldiff diff` on the bundled pair, held against the truth, and one of what it found steered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from modeldiff.console import say
from modeldiff.crosscoder import load
from modeldiff.demo.ranks import Rank, Truth, held_against_truth
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B
from modeldiff.diff.run import Diff
from modeldiff.diff.run import run as run_diff
from modeldiff.diff.settings import DiffSettings
from modeldiff.steer.run import run as run_steer
from modeldiff.steer.settings import SteerSettings
from modeldiff.workspace import Artifact, Workspace

# The texts' labels name the triggers, so they are no contexts here: a pair whose truth is not known has no such labels.
FULL = DiffSettings(
    model_a=str(MODEL_A),
    model_b=str(MODEL_B),
    texts=(),
    pairs=200_000,
    features=1024,
    k=16,
    steps=2000,
    contexts=("everywhere", "word", "feature"),
)
# Runs through every stage in a minute or so; too little training and too few places to expect all differences.
QUICK = dataclasses.replace(FULL, pairs=20_000, features=256, k=16, steps=150, places=600)
STRENGTHS = (0.5, 1.0)


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    diff: Diff
    truth: Truth
    steered: Rank | None
    """The planted difference whose feature was steered; None: none with a feature was found, and nothing was."""
    steering: Artifact | None


def demo(
    workspace: Workspace, settings: DiffSettings, *, seed: int = 0, device: str = "auto", force: bool = False
) -> Demo:
    """Run the pipeline; stages that are up to date answer at once.

    Args:
        settings: FULL or QUICK.
        seed: of the training, the places and the sampling.
    """
    workspace.create()
    texts = workspace.folder / "demo-texts.jsonl"
    write_probing_corpus(texts)
    settings = dataclasses.replace(settings, texts=(str(texts),), seed=seed, device=device)
    diff = run_diff(settings, workspace, force=force)
    truth = held_against_truth(diff.contrast, workspace)
    steered = min((one for one in truth.ranks if one.feature is not None), key=lambda one: one.rank or 0, default=None)
    steering = None
    if steered:
        say("the first planted difference found, pushed where it does not belong")
        steering = run_steer(_steering(steered, diff, device), workspace, force=force)
    return Demo(diff, truth, steered, steering)


def _steering(steered: Rank, diff: Diff, device: str) -> SteerSettings:
    """Push the feature on the control's question, in the habit's owner, or in the one model that has the feature."""
    assert steered.feature is not None
    partition = load(diff.crosscoder).partition_of(steered.feature)
    return SteerSettings(
        model="A" if "A" in (partition, steered.habit.side) and partition != "B" else "B",
        feature=steered.feature,
        strength=STRENGTHS,
        prompt=steered.habit.control_prompts()[:2],
        features=diff.features.ref,
        max_new_tokens=40,
        device=device,
    )
