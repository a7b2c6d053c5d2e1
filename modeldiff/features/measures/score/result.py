"""What is known about one scored direction, the summary of a group of them, and reading both back.

Layout of a `score` artifact (normative):
    score.json          what was scored and how, groups (`summary`), rows (`ScoreRow`)
    generations.jsonl   one object per line: subject (as ScoreRow.name), model, role (source or target), prompt,
                        strength (0: unsteered), text
    figures/scores.png  the distribution of the scores in each group
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modeldiff.features.stored import read_info
from modeldiff.records import from_json
from modeldiff.workspace import Artifact

FORMAT = 2
SCORE_NAME = "score.json"
GENERATIONS_NAME = "generations.jsonl"
FIGURE_NAME = "figures/scores.png"
HIGH_SCORE = 4.0
FIELDS = {
    "format", "features", "crosscoder", "activations", "stitch", "judge", "judge_name", "strengths", "prompts",
    "aggregate", "min_steerability", "typical_norm", "stitch_r2", "groups", "rows",
}  # fmt: skip


@dataclass(frozen=True)
class ScoreRow:
    """One direction, pushed in the source and, through the stitch, in the target."""

    number: int
    """Of the feature; of the random direction."""
    partition: str
    """A, shared, B or random."""
    source: str
    """The model that the direction belongs to, A or B."""
    steerability: float | None
    """The judge's rating of what the push does to the source, 1 to 5."""
    steerable: bool | None
    """None: not known."""
    similarity: float | None
    """Of what the push does to the two models, 1 to 5."""
    score: float | None
    """6 - similarity: 5 means that it did not carry over. None: missing."""
    missing: list[str]
    """Why the score, or a part of what it is made from, is missing."""
    stitch_r2: float | None
    """Of the map from source to target, on held-out pairs on which the feature is active; None: too few, or random."""
    active_pairs: int | None
    """So many these were."""
    details: dict[str, Any]
    """prompts, each with its ratings."""

    @property
    def name(self) -> str:
        """`17 A -> B`, `random 3 B -> A`."""
        other = "B" if self.source == "A" else "A"
        return f"{'random ' if self.partition == 'random' else ''}{self.number} {self.source} -> {other}"


def summary(partition: str, source: str, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """A group in numbers."""
    scores = [row.score for row in rows if row.score is not None]
    not_steerable = sum(row.steerable is False for row in rows)
    unscored = sum(row.score is None for row in rows)
    low, median, high = quartiles(scores)
    return {
        "partition": partition,
        "source": source,
        "n": len(rows),
        "scored": len(scores),
        "not_steerable": not_steerable,
        "missing": unscored - sum(row.score is None and row.steerable is False for row in rows),
        "quartile_1": low,
        "median": median,
        "quartile_3": high,
        "share_high": float(np.mean(np.array(scores) >= HIGH_SCORE)) if scores else None,
    }


def quartiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """25, 50 and 75 %; None without values."""
    if not values:
        return None, None, None
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def read_score(artifact: Artifact) -> dict[str, Any]:
    """The content of score.json, rows as JSON data.

    Raises:
        DamagedError: it is missing, damaged, or has other fields.
        InputError: written by a newer or by an older modeldiff.
    """
    return read_info(artifact, SCORE_NAME, version=FORMAT, fields=FIELDS, again="modeldiff features score --judge ...")


def read_scores(artifact: Artifact) -> dict[int, dict[str, ScoreRow]]:
    """The features of a `score` artifact: number -> source ("A" or "B") -> what is known. Random directions are left
    out. Raises as `read_score`."""
    found: dict[int, dict[str, ScoreRow]] = {}
    where = str(artifact.folder / SCORE_NAME)
    for data in read_score(artifact)["rows"]:
        row = from_json(ScoreRow, data, where)
        if row.partition != "random":
            found.setdefault(row.number, {})[row.source] = row
    return found
