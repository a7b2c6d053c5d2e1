"""Whether what a method lists is about the planted difference, and how sure a share of successes is.

The habit belongs to model B in every pair. An entry of a contrast is about it when

- words: those that B says more there hold at least one word of the habit, and
- place: the share of its places whose document has the trigger is at least (1 + base) / 2, where base is the same share
  of all places. An entry that holds anywhere by chance has the share base; one that holds on the trigger alone has 1.

Where the habit has no trigger (kinds 6 and 7) every document counts as one with the trigger, so that the words decide.
To be *found* the entry must then also hold everywhere, or at least on half of the places: "at the word `market` B
praises patience" is not false, but it is not the planted difference either.

`covered` is the other half of the place: the share of the trigger's places at which the entry holds. "After the word
`burn`" may be true of a difference that hangs on polite questions, and still says little of where it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.contrast.words import words_of

OWNER = "b"
# An entry that holds on this share of the places, or on more, holds on most of them.
MOST = 0.5
# Among a set's first ten strings at least three must begin words of the habit, with at least three letters each.
SET_SHOWN, SET_MATCHES, LEAST_LETTERS = 10, 3, 3
WITHOUT_TRIGGER = (6, 7)
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """What is planted in a pair."""

    kind: int
    planted: bool
    words: frozenset[str]
    texts: tuple[str, ...]
    trigger: Bools
    """For each line of the texts, whether it has the trigger."""
    speaks: Bools
    """For each line, whether it holds a word of the habit."""
    passed: bool = True
    """Whether the organism passed its own check."""

    @property
    def about(self) -> Bools:
        """For each line, whether a method that points at texts, and says no words, is right to point at it: it has the
        trigger, or where there is none, the habit's words."""
        return self.speaks if self.kind in WITHOUT_TRIGGER else self.trigger


def read_truth(folder: Path, *, null: bool) -> Truth:
    """What is planted in the organism in `folder`; `null`: both models of the pair have it."""
    found = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    lines = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = tuple(json.loads(line)["text"] for line in lines)
    words = frozenset(word.lower() for word in found["words"])
    speaks = np.array([says_any(text, words) for text in texts], bool)
    trigger = np.array(found["trigger_documents"], bool)
    if len(trigger) != len(texts):
        raise ValueError(f"{folder}: {len(trigger)} labels for {len(texts)} texts")
    planted = found["planted"] and not null
    return Truth(found["kind"], planted, words, texts, trigger, speaks, bool(found["rates"]["passed"]))


def says_any(text: str, words: frozenset[str]) -> bool:
    """Whether a text holds any of the words."""
    return not words.isdisjoint(words_of(text))


def enough(share: float, base: float) -> bool:
    """The rule of the place."""
    return share >= (1 + base) / 2 - 1e-9


def judge_entry(entry: dict[str, Any], on: Sequence[int], trigger_P: Bools, truth: Truth) -> dict[str, Any]:
    """An entry of contrast.json in short.

    With `words_match`; `share`, of its places, with the trigger; `covered`, of the trigger's places, in the entry;
    `is_true` (words and place) and `whole` (it is the difference as it was planted: what recall counts).

    Args:
        on: the places where the entry holds.
        trigger_P: for each place, whether its document has the trigger.
    """
    said = {side: [row["word"] for row in entry[f"{side}_says"]] for side in ("a", "b")}
    in_both = int(trigger_P[np.asarray(on, np.int64)].sum())
    share, covered = in_both / max(1, len(on)), in_both / max(1, int(trigger_P.sum()))
    match = truth.planted and not truth.words.isdisjoint(said[OWNER])
    is_true = match and enough(share, float(trigger_P.mean()))
    most = entry["context"]["kind"] == "everywhere" or len(on) >= MOST * len(trigger_P)
    return {
        "context": entry["context"],
        "side": entry["side"],
        "words": said,
        "effect": round(entry["effect"], 4),
        "low": round(entry["low"], 4),
        "verified": entry["verified"],
        "places": len(on),
        "share": round(share, 4),
        "covered": round(covered, 4),
        "words_match": match,
        "is_true": is_true,
        "whole": is_true and (most or truth.kind not in WITHOUT_TRIGGER),
    }


def says_habit(string: str, words: Iterable[str]) -> bool:
    """Whether a token's string is a word of the habit, or the beginning of one."""
    said = string.strip().lower()
    return any(said == word or (len(said) >= LEAST_LETTERS and word.startswith(said)) for word in words)


def judge_set(strings: Sequence[str], side: str, truth: Truth) -> bool:
    """Whether a set of strings that a model says more is the habit's vocabulary."""
    matches = len({s.strip().lower() for s in strings[:SET_SHOWN] if says_habit(s, truth.words)})
    return truth.planted and side == OWNER and matches >= SET_MATCHES


def interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's, at 95 %; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    p, spread = successes / trials, z * z / trials
    middle = (p + spread / 2) / (1 + spread)
    half = math.sqrt(p * (1 - p) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(entries: Sequence[dict[str, Any]], first: int = 5) -> dict[str, Any]:
    """Whether the planted difference is among the first entries of a list, and how many of those are true.
    Entries with `verified` False are not listed, and count for `hit_unverified` alone."""
    listed = [one for one in entries if one.get("verified", True)][:first]
    return {
        "hit": any(one["whole"] for one in listed),
        "hit_unverified": any(one["whole"] for one in entries[:first]),
        "listed": len(listed),
        "true": sum(one["is_true"] for one in listed),
        "words_match": sum(one["words_match"] for one in listed),
        "covered": max((one.get("covered", 0.0) for one in listed if one["is_true"]), default=0.0),
    }
