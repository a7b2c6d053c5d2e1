"""A score artifact: what is known about a direction and about a group of them, reading it back, and printing it.

Layout (normative):
    score.json
        format
        crosscoder, activations, features, stitch    what was scored, and what moved directions
        stitch_r2                   held-out R² of the maps, by direction
        judge                       its name
        strengths, prompts          without 0
        groups[]                    by partition (or random) and source
            partition, source, n
            scored, missing         number with a score; without one, though the push is felt
            not_steerable           number whose push is rated below MIN_STEERABILITY
            quartile_1, median, quartile_3, share_high    of the scores; share of at least HIGH_SCORE; null: none
        rows[]                      directions, group by group: fields of `ScoreRow`
    generations.jsonl               a line for each text
        subject                     "17 A -> B", or "random 3 B -> A"
        model, role                 A or B; source or target of the direction
        prompt, text
        strength                    0: unsteered
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modeldiff.catalogue.stored import read_info
from modeldiff.console import echo, wrapped
from modeldiff.format import fixed, percent, table
from modeldiff.records import from_json
from modeldiff.sides import OTHER
from modeldiff.workspace import Artifact

RANDOM = "random"
"""Stands for the partition of random directions."""
FORMAT = 3
SCORE_NAME = "score.json"
GENERATIONS_NAME = "generations.jsonl"
MIN_STEERABILITY = 3.0
"""A feature whose push is rated below this on its own model has no score (paper 6.1)."""
HIGH_SCORE = 4.0
_LISTED = 10
GROUPS = {"A": "A-exclusive", "B": "B-exclusive", "shared": "shared", RANDOM: "random"}
"""Names of the partitions, in the order of tables."""


@dataclass(frozen=True)
class ScoreRow:
    """One direction, pushed in the source and, through the stitch, in the target."""

    number: int
    """Number of the feature, or of the random direction."""
    partition: str
    """A, shared, B or random."""
    source: str
    """The model that the direction belongs to, A or B."""
    steerability: float | None
    """The judge's rating of what the push does to the source, 1 to 5: the mean over the prompts."""
    score: float | None
    """6 - similarity: 5 means that the effect did not carry over. None: missing."""
    missing: list[str]
    """Why the score, or a part of what it is made from, is missing."""
    ratings: list[dict[str, int | None]]
    """For each prompt steerability and similarity, 1 to 5."""


def route(source: str) -> str:
    """Which way directions of a model are moved, for people: `A -> B`."""
    return f"{source.upper()} -> {OTHER[source.lower()].upper()}"


def summary(partition: str, source: str, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    scores = [row.score for row in rows if row.score is not None]
    not_steerable = [row.steerability is not None and row.steerability < MIN_STEERABILITY for row in rows]
    low, median, high = np.quantile(scores, [0.25, 0.5, 0.75]).tolist() if scores else (None, None, None)
    return {
        "partition": partition,
        "source": source,
        "n": len(rows),
        "scored": len(scores),
        "not_steerable": sum(not_steerable),
        "missing": sum(row.score is None and not weak for row, weak in zip(rows, not_steerable, strict=True)),
        "quartile_1": low,
        "median": median,
        "quartile_3": high,
        "share_high": float(np.mean(np.array(scores) >= HIGH_SCORE)) if scores else None,
    }


def read_score(artifact: Artifact) -> dict[str, Any]:
    """The content of score.json, rows as JSON data. Raises as `read_info`."""
    return read_info(artifact, SCORE_NAME, version=FORMAT, again="modeldiff features score --judge ...")


def read_scores(artifact: Artifact) -> dict[int, dict[str, ScoreRow]]:
    """The features of a `score` artifact: number -> source ("A" or "B") -> what is known. Random directions are left
    out. Raises as `read_info`."""
    found: dict[int, dict[str, ScoreRow]] = {}
    where = str(artifact.folder / SCORE_NAME)
    for data in read_score(artifact)["rows"]:
        row = from_json(ScoreRow, data, where)
        if row.partition != RANDOM:
            found.setdefault(row.number, {})[row.source] = row
    return found


def print_score(artifact: Artifact) -> None:
    """The distribution of the scores in each group, the controls among them, and the features of the highest score."""
    score = read_score(artifact)
    columns = ("n", "not st.", "missing", "25 %", "median", "75 %", "≥ 4")
    table(
        f"{artifact.ref} of {score['features']} by {score['judge']}",
        [("group", "left"), *((name, "right") for name in columns)],
        [_group_cells(group) for group in score["groups"]],
    )
    r2 = " and ".join(f"{fixed(r2)} {route(way[0])}" for way, r2 in score["stitch_r2"].items())
    echo(
        "score: 5 does not carry over to the other model, 1 does.",
        f"{score['stitch']}: R² {r2} on held-out pairs.",
        "What the stitch loses raises scores: compare a group with shared, not with 1.",
        f"not st.: rated below {MIN_STEERABILITY:g} on its own model (features: no score).",
        "random: random directions of the features' usual norm, scored steerable or not.",
        "",
    )
    rows = [row for row in score["rows"] if row["partition"] != RANDOM and row["score"] is not None]
    if not rows:
        why = Counter(reason for row in score["rows"] if row["partition"] != RANDOM for reason in row["missing"])
        echo(*wrapped(f"no feature has a score: {'; '.join(reason for reason, _ in why.most_common(3))}"))
        return
    highest = sorted(rows, key=lambda row: (-row["score"], row["number"]))[:_LISTED]
    table(
        f"the {len(highest)} highest of {len(rows)}",
        [("id", "right"), ("group", "left"), ("score", "right"), ("steer", "right"), ("by prompt", "left")],
        [_cells(row) for row in highest],
    )
    for row in highest:
        if row["missing"]:
            echo(*wrapped(f"{row['number']}: {'; '.join(row['missing'])}"))
    echo("A high score: no counterpart was found by this stitch, not that there is none.")


def _group_cells(group: dict[str, Any]) -> list[str]:
    counts = [f"{group[key]:,}" for key in ("n", "not_steerable", "missing")]
    quartiles = [fixed(group[key]) for key in ("quartile_1", "median", "quartile_3")]
    name = f"{GROUPS[group['partition']]} {route(group['source'])}"
    return [name, *counts, *quartiles, percent(group["share_high"])]


def _cells(row: dict[str, Any]) -> list[str]:
    scores = ["-" if one["similarity"] is None else str(6 - one["similarity"]) for one in row["ratings"]]
    name = f"{row['partition']} {route(row['source'])}"
    return [str(row["number"]), name, fixed(row["score"]), fixed(row["steerability"], 1), " ".join(scores)]
