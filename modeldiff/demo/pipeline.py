"""The demo: `modeldiff diff` on the bundled pair, held against the truth, and one of what it found steered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from modeldiff.catalogue.contrast import read_contrast, read_places
from modeldiff.console import say
from modeldiff.contrast.continuations import Continuations
from modeldiff.crosscoder import load
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B, PLANTED, Planted
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
# An entry is about a planted difference when the text before so many of its places names the trigger (it does before
# about one place in fourteen).
MATCH_SHARE = 0.5


@dataclass(frozen=True)
class Rank:
    """Where one planted difference stands in the list."""

    habit: Planted
    rank: int | None
    """Of the first entry about it, from 1; None: missed."""
    feature: int | None
    """That entry's feature, if it has one."""
    share: float
    """Share of that entry's places before which the trigger is named; if missed, the largest share of any entry."""


@dataclass(frozen=True)
class Demo:
    diff: Diff
    ranks: list[Rank]
    other: list[int]
    """Ranks of the verified entries that are about none of the planted differences."""
    steered: Rank | None
    """The planted difference whose feature was steered; None: none with a feature was found, and nothing was."""
    steering: Artifact | None


def demo(
    workspace: Workspace, settings: DiffSettings, *, seed: int = 0, device: str = "auto", force: bool = False
) -> Demo:
    """Run the pipeline; stages that are up to date answer at once.

    settings: FULL or QUICK; seed: of the training, the places and the sampling.
    """
    workspace.create()
    texts = workspace.folder / "demo-texts.jsonl"
    write_probing_corpus(texts)
    settings = dataclasses.replace(settings, texts=(str(texts),), seed=seed, device=device)
    diff = run_diff(settings, workspace, force=force)
    continuations = Continuations(diff.continuations)
    entries = read_contrast(diff.contrast)["differences"]
    before = [
        [continuations.before(place).lower() for place in places.tolist()]
        for places in read_places(diff.contrast)[: len(entries)]
    ]
    ranks, other = ranks_of(before, [one["feature"] for one in entries])
    steered = min((one for one in ranks if one.feature is not None), key=lambda one: one.rank or 0, default=None)
    steering = None
    if steered and steered.feature is not None:
        say("the first planted difference found, pushed where it does not belong")
        partition = load(diff.crosscoder).partition_of(steered.feature)
        pushed = SteerSettings(
            # The habit's owner, or the one model that has the feature.
            model="A" if "A" in (partition, steered.habit.side) and partition != "B" else "B",
            feature=steered.feature,
            strength=(0.5, 1.0),
            prompt=tuple(steered.habit.about_control(steered.habit.prompts[:2])),
            features=diff.features.ref,
            max_new_tokens=40,
            device=device,
        )
        steering = run_steer(pushed, workspace, force=force)
    return Demo(diff, ranks, other, steered, steering)


def ranks_of(before: Sequence[Sequence[str]], features: Sequence[int | None]) -> tuple[list[Rank], list[int]]:
    """(where each planted difference stands, ranks of the entries that are about none of them).

    before: the lower-case texts before the places of each entry; features: of each entry.
    """
    ranks, about = [], set()
    for habit in PLANTED:
        shares = [sum(habit.trigger.lower() in text for text in texts) / max(1, len(texts)) for texts in before]
        matching = [i for i, share in enumerate(shares) if share >= MATCH_SHARE]
        about |= set(matching)
        if matching:
            ranks.append(Rank(habit, matching[0] + 1, features[matching[0]], shares[matching[0]]))
        else:
            ranks.append(Rank(habit, None, None, max(shares, default=0.0)))
    return ranks, [i + 1 for i in range(len(before)) if i not in about]
