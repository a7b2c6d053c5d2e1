"""How often a contrast lists anything in worlds in which nothing differs, and what it finds where something does.

    python -m tests.benchmarks.contrast_null [--runs 500] [--seed 1000]

The nulls are of five kinds in turn: independent places; four alike places a document; both models say some words more
where a context holds; one document thirty times; few words. The effect may be as small as it likes (`smallest` 0),
which is the hardest: at the default of 5 points far less is listed. Planted worlds: 600 documents of two places,
contexts that hold on a fifth of them, in two of which one model says one word more often.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from scipy import stats

from modeldiff.contrast.discovery import Outcome, contrast
from modeldiff.contrast.settings import ContrastSettings
from tests.contrast.made_worlds import made_world

NULLS: dict[str, dict[str, Any]] = {
    "independent places": {},
    "four alike places a document": {"together": 0.8, "per_document": 4, "documents": 150},
    "both models say more there": {"unequal": 0.25, "density": 0.05},
    "one document thirty times": {"repeats": 30},
    "few words": {"words": 12, "contexts": 60},
}
RATE = 0.05


def outcome(seed: int, smallest: float = 0.0, **world: Any) -> Outcome:
    made = made_world(seed, **world)
    settings = ContrastSettings(rate=RATE, smallest=smallest, least=8, seed=seed)
    return contrast(made.contexts, made.said, made.document_P, settings, worlds=0)


def interval(successes: int, runs: int) -> str:
    found = stats.binomtest(successes, runs).proportion_ci(method="exact")
    return f"{successes} of {runs} = {successes / runs:.1%} [{found.low:.1%}, {found.high:.1%}]"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=500)
    options.add_argument("--seed", type=int, default=1000)
    asked = options.parse_args()
    began = time.monotonic()
    wrong = dict.fromkeys(NULLS, 0)
    for run in range(asked.runs):
        kind = list(NULLS)[run % len(NULLS)]
        wrong[kind] += outcome(asked.seed + run, **NULLS[kind]).found > 0
    each = asked.runs // len(NULLS)
    for kind, count in wrong.items():
        sys.stdout.write(f"null, {kind}: a list with anything in {interval(count, each)}\n")
    sys.stdout.write(f"all nulls: {interval(sum(wrong.values()), each * len(NULLS))}; stated rate {RATE:.0%}\n")
    for effect in (0.2, 0.3, 0.4):
        hits = false = listed = 0
        runs = max(1, asked.runs // 10)
        for run in range(runs):
            found = outcome(
                asked.seed + run, 0.05, documents=600, density=0.2, planted={3: {"a": effect}, 7: {"b": effect}}
            )
            names = [found.contexts.which[one.candidate.context].name for one in found.entries if one.verified]
            hits += len({"3", "7"} & set(names))
            false += sum(name not in ("3", "7") for name in names)
            listed += len(names)
        sys.stdout.write(f"planted {effect:.0%}: recall {interval(hits, 2 * runs)}; false {false} of {listed} listed\n")
    sys.stdout.write(f"{time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
