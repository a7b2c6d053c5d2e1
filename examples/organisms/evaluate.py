"""Every method on every pair: one line of results.jsonl for each (pair, seed of the crosscoder, method).

Of each pair, in a workspace of its own: harvest, continuations, and for each seed a crosscoder with the recipe of
`modeldiff demo`. Methods that need no crosscoder have seed null. What is finished is skipped when the command is given
again; errors are written down and tried again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .catalogue import PAIRS, Pair
from .results import RESULTS, pair_row, read_rows, write_row
from .scoring import judge_entry, read_truth, says_any, summary

# Entries of a list that are written down.
KEPT = 20


@dataclass(frozen=True)
class Size:
    """How much is harvested and trained."""

    pairs: int
    features: int
    k: int
    steps: int
    batch: int


FULL = Size(pairs=200_000, features=1024, k=16, steps=2000, batch=2048)
QUICK = Size(pairs=20_000, features=256, k=16, steps=150, batch=1024)


@dataclass(frozen=True)
class Plan:
    """What the command was given."""

    organisms: Path
    out: Path
    seeds: tuple[int, ...]
    device: str
    methods: tuple[str, ...]
    keep: bool
    quick: bool = False
    """Go through every stage with little data and little training: the figures mean nothing."""

    @property
    def size(self) -> Size:
        return QUICK if self.quick else FULL


class Run:
    """One pair: its stages, each done when it is first asked for, and what they took."""

    def __init__(self, pair: Pair, plan: Plan) -> None:
        from modeldiff.workspace import Workspace

        self.pair, self.plan = pair, plan
        self.folder = plan.out / "work" / pair.name
        self.workspace = Workspace(self.folder)
        self.truth = read_truth(plan.organisms / pair.texts, null=pair.relation == "null")
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0) + time.monotonic() - began, 2)

    def model(self, ref: str) -> str:
        """The folder of a bundled model or of an organism's."""
        from modeldiff.demo.truth import MODEL_A, MODEL_B

        bundled = {"base:a": MODEL_A, "base:b": MODEL_B}
        return str(bundled.get(ref) or self.plan.organisms / ref / "model")

    @cached_property
    def common(self) -> dict[str, Any]:
        """Settings of the harvest and of the continuations."""
        return {
            "model_a": self.model(self.pair.model_a),
            "model_b": self.model(self.pair.model_b),
            "texts": (str(self.plan.organisms / self.pair.texts / "texts.jsonl"),),
            "device": self.plan.device,
        }

    @cached_property
    def activations(self) -> Any:
        from modeldiff.harvest.run import run
        from modeldiff.harvest.settings import HarvestSettings

        with self.timed("harvest"):
            return run(HarvestSettings(**self.common, pairs=self.plan.size.pairs), self.workspace)

    @cached_property
    def continuations(self) -> Any:
        from modeldiff.contrast.continuations import Continuations, run
        from modeldiff.contrast.settings import ContinuationsSettings

        with self.timed("continuations"):
            fewer: dict[str, Any] = {"places": 600, "tokens": 8} if self.plan.quick else {}
            made = Continuations(run(ContinuationsSettings(**self.common, **fewer), self.workspace))
        for number, record in zip(made.number, made.documents, strict=True):
            if record.text not in self.truth.texts[number]:
                raise ValueError(f"document {number} of the continuations is not line {number} of the texts")
        return made

    @cached_property
    def trigger_P(self) -> NDArray[np.bool_]:
        """For each place, whether its document has the trigger."""
        made = self.continuations
        return np.array([self.truth.trigger[made.number[place.document]] for place in made.places], bool)

    @cached_property
    def without_trigger(self) -> dict[str, float]:
        """How often each model says any of the habit's words where its trigger is not. What is learned too broadly is
        said there, too, and is then a difference that a list may name."""
        words = self.truth.words
        off = [place.said for place, on in zip(self.continuations.places, self.trigger_P, strict=True) if not on]
        if not off:
            return {}
        return {
            side: round(sum(any(says_any(text, words) for text in said[side]) for said in off) / len(off), 4)
            for side in "ab"
        }

    @cached_property
    def readings(self) -> Any:
        from modeldiff.lm.device import resolve_device

        from .baselines import read_texts

        with self.timed("baseline readings"):
            return read_texts(self.continuations, resolve_device(self.plan.device))

    def features(self, seed: int) -> tuple[Any, Any]:
        """(crosscoder, features artifact) of a seed; the workspace has them the second time."""
        from modeldiff.crosscoder.settings import TrainSettings
        from modeldiff.crosscoder.training.run import run as train
        from modeldiff.features.run import run as measure
        from modeldiff.features.settings import FeaturesSettings

        size, device = self.plan.size, self.plan.device
        activations = self.activations
        with self.timed("train"):
            settings = TrainSettings(
                activations=activations.ref, seed=seed, device=device, features=size.features, k=size.k,
                steps=size.steps, batch=size.batch,
            )  # fmt: skip
            crosscoder = train(settings, self.workspace)
        with self.timed("features"):
            features = measure(FeaturesSettings(crosscoder=crosscoder.ref, device=device), self.workspace)
        return crosscoder, features

    def contrast(self, contexts: tuple[str, ...], seed: int | None) -> dict[str, Any]:
        from modeldiff.catalogue.contrast import read_contrast, read_places
        from modeldiff.contrast.run import run
        from modeldiff.contrast.settings import ContrastSettings

        continuations = self.continuations.artifact
        chosen: dict[str, Any] = {"crosscoder": "none"}
        if seed is not None:
            crosscoder, _ = self.features(seed)
            chosen = {"crosscoder": crosscoder.ref}
        settings = ContrastSettings(
            continuations=continuations.ref, contexts=contexts, cause=False, device=self.plan.device, **chosen
        )
        with self.timed("contrast"):
            made = run(settings, self.workspace)
        found = read_contrast(made)
        listed = [*found["differences"], *found["not_verified"]]
        places = [one.tolist() for one in read_places(made)]
        judged = [judge_entry(entry, on, self.trigger_P, self.truth) for entry, on in zip(listed, places, strict=True)]
        rates = {
            "expected_by_chance": found["expected_by_chance"],
            "base": round(float(self.trigger_P.mean()), 4),
            "without_trigger": self.without_trigger,
        }
        return {"entries": judged[:KEPT], "found": found["found"], **rates, **summary(judged)}

    def diff_mining(self, *, logits: bool) -> dict[str, Any]:
        from .baselines import diff_mining

        readings = self.readings
        with self.timed("baseline"):
            entries = diff_mining(readings, self.truth, logits=logits)
        return {"entries": entries, "found": None, **summary(entries)}

    def said_mining(self) -> dict[str, Any]:
        from .baselines import said_mining

        continuations = self.continuations
        with self.timed("baseline"):
            entries = said_mining(continuations, self.truth)
        return {"entries": entries, "found": None, **summary(entries)}

    def perplexity(self) -> dict[str, Any]:
        from .baselines import perplexity

        score = self.readings.score
        about_D = self.truth.about[self.continuations.number]
        return {"found": None, **perplexity(score["b"] - score["a"], about_D, self.truth.planted)}

    def exclusive(self, seed: int, *, anywhere: bool) -> dict[str, Any]:
        from modeldiff.catalogue.table import FeatureTable

        from .baselines import exclusive_list

        _, features = self.features(seed)
        with self.timed("baseline"):
            return exclusive_list(FeatureTable(features), self.truth, anywhere=anywhere)


# Without a crosscoder, and with one of each seed.
ONCE: dict[str, Callable[[Run], dict[str, Any]]] = {
    "words": lambda run: run.contrast(("everywhere", "source", "word"), None),
    "diff mining (logits)": lambda run: run.diff_mining(logits=True),
    "diff mining (probabilities)": lambda run: run.diff_mining(logits=False),
    "diff mining (words)": lambda run: run.said_mining(),
    "perplexity": lambda run: run.perplexity(),
}
SEEDED: dict[str, Callable[[Run, int], dict[str, Any]]] = {
    "features": lambda run, seed: run.contrast(("everywhere", "feature"), seed),
    "all": lambda run, seed: run.contrast(("everywhere", "source", "word", "feature"), seed),
    "exclusive": lambda run, seed: run.exclusive(seed, anywhere=False),
    "exclusive anywhere": lambda run, seed: run.exclusive(seed, anywhere=True),
}


def wanted(plan: Plan) -> list[tuple[int | None, str]]:
    """(seed, method) of every row of a pair, the cheap ones first."""
    once: list[tuple[int | None, str]] = [(None, method) for method in ONCE if method in plan.methods]
    return once + [(seed, method) for seed in plan.seeds for method in SEEDED if method in plan.methods]


def evaluate_pair(task: tuple[Pair, Plan]) -> bool:
    """Write the missing rows of a pair; returns whether nothing failed."""
    from modeldiff.console import mute

    mute()
    pair, plan = task
    done = {
        (row["seed"], row["method"]) for row in read_rows(plan.out) if row["pair"] == pair.name and "error" not in row
    }
    missing = [one for one in wanted(plan) if one not in done]
    if not missing:
        return True
    run, sound = Run(pair, plan), True
    for seed, method in missing:
        row = pair_row(pair, seed, method) | {"passed": run.truth.passed}
        run.seconds = {}
        try:
            row |= ONCE[method](run) if seed is None else SEEDED[method](run, seed)
        except Exception as error:  # whatever it is, the other rows go on
            row["error"], sound = f"{type(error).__name__}: {error}", False
        write_row(plan.out, row | {"seconds": run.seconds})
        say_row(row | {"seconds": run.seconds})
    if not plan.keep:
        shutil.rmtree(run.folder, ignore_errors=True)
    return sound


def say_row(row: dict[str, Any]) -> None:
    """One line of what is known now."""
    seed = "-" if row["seed"] is None else row["seed"]
    result = row.get("error") or f"{'found' if row['hit'] else 'not found'}, {row['true']} of {row['listed']} true"
    seconds = ", ".join(f"{stage} {taken:.0f} s" for stage, taken in row["seconds"].items())
    print(f"{row['pair']} | {row['method']} | seed {seed} | {result} | {seconds}", flush=True)


def available(plan: Plan, pairs: Sequence[Pair]) -> list[Pair]:
    """Those whose organisms are finished."""
    names = {pair.name: {pair.texts, *(m for m in (pair.model_a, pair.model_b) if ":" not in m)} for pair in pairs}
    return [pair for pair in pairs if all((plan.organisms / name / "truth.json").exists() for name in names[pair.name])]


def evaluate(plan: Plan, only: Sequence[str], variant: str | None, jobs: int, threads: int) -> int:
    """Evaluate all pairs that are asked for; returns the number of errors."""
    from .workers import run_tasks

    plan.out.mkdir(parents=True, exist_ok=True)
    pairs = [pair for pair in PAIRS if variant in (None, pair.variant) and (not only or pair.name in only)]
    ready = available(plan, pairs)
    for pair in pairs:
        if pair not in ready:
            print(f"{pair.name}: left out, its organism is not made yet")
    began = time.monotonic()
    run_tasks(
        [(pair, plan) for pair in ready],
        evaluate_pair,
        jobs,
        threads,
        lambda task, error: write_row(plan.out, pair_row(task[0], None, "*") | {"error": error, "seconds": {}}),
    )
    errors = [row for row in read_rows(plan.out) if "error" in row and row["pair"] in {pair.name for pair in ready}]
    for row in errors:
        print(f"error: {row['pair']}, {row['method']}, seed {row['seed']}: {row['error'].splitlines()[-1]}")
    print(f"{len(ready)} pairs in {time.monotonic() - began:.0f} s, {len(errors)} errors: {plan.out / RESULTS}")
    return len(errors)
