"""Which places and how long continuations show differences, on the bundled pair, by words alone.

    modeldiff demo && python -m tests.benchmarks.contrast_places [--workspace modeldiff-workspace] [--splits 6]

The same continuations are used in parts: places drawn evenly, places drawn where the next words diverge, half of the
documents with both (as many places as either), and the first two thirds and the first third of every continuation. Each
is searched with several splits of the documents into halves. Counted are the planted differences that are verified.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from modeldiff.contrast import contexts as make
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.discovery import contrast
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.contrast.words import said_words
from modeldiff.demo.truth import habits
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace


def shortened(text: str, share: float) -> str:
    words = text.split(" ")
    return text if share == 1 else " ".join(words[: max(1, round(len(words) * share))]) + " "


def found(made: Continuations, places: np.ndarray, share: float, splits: int) -> str:
    """Verified planted differences over all splits, of how many, and verified entries about none of them."""
    said = {side: [[shortened(t, share) for t in made.places[i].said[side]] for i in places] for side in SIDES}
    before = [made.before(i) for i in places]
    contexts = make.joined([make.everywhere(len(places)), make.words(before, least=24)])
    document_P = np.array([made.places[i].document for i in places])
    hits = other = 0
    for seed in range(splits):
        words = said_words(said, [False] * len(places), least=20)
        outcome = contrast(contexts, words, document_P, ContrastSettings(seed=seed), worlds=0)
        about = set()
        for one in (one for one in outcome.entries if one.verified):
            on = outcome.contexts.on_CP[one.candidate.context].indices
            named = [np.mean([h.trigger.lower() in before[i].lower() for i in on]) for h in habits()]
            if max(named) >= 0.5:
                about.add(int(np.argmax(named)))
            else:
                other += 1
        hits += len(about)
    return f"{len(places):,} places: planted {hits} of {splits * len(habits())}, others {other}"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--workspace")
    options.add_argument("--splits", type=int, default=6)
    asked = options.parse_args()
    made = Continuations(Workspace(asked.workspace).find("continuations"))
    drawn = np.array([place.drawn for place in made.places])
    documents = np.unique([place.document for place in made.places])
    half = np.random.default_rng(0).permutation(documents)[: len(documents) // 2]
    everything = np.arange(len(drawn))
    parts = {
        "all": (everything, 1.0),
        "all, two thirds of each continuation": (everything, 0.66),
        "all, a third of each continuation": (everything, 0.33),
        "drawn evenly": (np.flatnonzero(drawn == "uniform"), 1.0),
        "drawn by divergence": (np.flatnonzero(drawn == "divergence"), 1.0),
        "both, half of the documents": (np.flatnonzero(np.isin([p.document for p in made.places], half)), 1.0),
    }
    for name, (places, share) in parts.items():
        sys.stdout.write(f"{name}: {found(made, places, share, asked.splits)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
