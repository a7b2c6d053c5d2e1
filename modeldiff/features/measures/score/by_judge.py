"""The score as in the paper (6.1): both models write while they are pushed, and a judge says how alike the push shows.

First the sources write and the judge says which directions do anything that can be named; only for these, and for the
random directions, the targets write and the judge compares. One model of the pair is in memory at a time, and none
while the judge is asked; a local judge stays in memory once it was asked.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from modeldiff.console import say
from modeldiff.features.measures.score.result import ScoreRow
from modeldiff.features.measures.score.settings import ScoreSettings
from modeldiff.features.measures.score.subjects import Subject, Subjects
from modeldiff.features.measures.score.texts import Writer
from modeldiff.judge.asking import Judged, ask_parsed
from modeldiff.judge.base import Judge, Prompt
from modeldiff.judge.questions import ask_similarity, ask_steerability, read_rating
from modeldiff.sides import SIDES

AGGREGATES: dict[str, Callable[[Sequence[int]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
}
Ratings = dict[str, list[Judged[int]]]
"""By `Subject.key`: a rating for each prompt."""


def score_by_judge(
    settings: ScoreSettings, subjects: Subjects, writers: dict[str, Writer], judge: Judge
) -> tuple[list[ScoreRow], list[dict[str, Any]]]:
    """(a row per subject, every generation). Texts and answers are kept as they come: asking again continues.

    Raises:
        InputError: the judge refuses, or the calls would exceed the budget.
        MachineError: the judge gives no answers.
    """
    everything = subjects.all
    prompts = len(settings.prompt)
    say(
        f"{judge.name} is asked at most {2 * prompts * len(everything):,} questions (and again where an answer cannot "
        f"be read): 2 about each of {prompts} prompts and {len(everything)} directions"
    )
    for side in SIDES:
        writers[side].write([one for one in everything if one.source == side], "source")
    steerability = _rate(judge, "steerability", _steerability_prompts(settings, everything, writers))
    compared = [one for one in everything if one.is_random or _is_steerable(settings, steerability[one.key])]
    # The model that wrote last first.
    for side in reversed(SIDES):
        writers[side].write([one for one in compared if one.target == side], "target")
    similarity = _rate(judge, "similarity", _similarity_prompts(settings, compared, writers))
    rows = [_row(settings, one, steerability[one.key], similarity.get(one.key)) for one in everything]
    generations = [
        record
        for one, row in zip(everything, rows, strict=True)
        for record in _generations(settings, one, row.name, writers, with_target=one in compared)
    ]
    return rows, generations


def aggregated(ratings: Sequence[Judged[int]], how: str) -> float | None:
    """The ratings that there are as one; None if there is none."""
    values = [one.value for one in ratings if one.value is not None]
    return float(AGGREGATES[how](values)) if values else None


def _steerability_prompts(
    settings: ScoreSettings, subjects: Sequence[Subject], writers: dict[str, Writer]
) -> dict[str, list[Prompt]]:
    asked: dict[str, list[Prompt]] = {}
    for one in subjects:
        written = writers[one.source].read(one)
        asked[one.key] = [
            ask_steerability(f"{one.name}, prompt {number}", prompt, written[number])
            for number, prompt in enumerate(settings.prompt)
        ]
    return asked


def _similarity_prompts(
    settings: ScoreSettings, subjects: Sequence[Subject], writers: dict[str, Writer]
) -> dict[str, list[Prompt]]:
    asked: dict[str, list[Prompt]] = {}
    for one in subjects:
        first, second = writers[one.source].read(one), writers[one.target].read(one)
        asked[one.key] = [
            ask_similarity(f"{one.name}, prompt {number}", prompt, first[number], second[number])
            for number, prompt in enumerate(settings.prompt)
        ]
    return asked


def _rate(judge: Judge, what: str, asked: dict[str, list[Prompt]]) -> Ratings:
    flat = [prompt for prompts in asked.values() for prompt in prompts]
    planned = judge.planned(flat)
    kept = f", {len(flat) - planned:,} are answered already" if planned < len(flat) else ""
    say(f"{what}: {planned:,} calls to {judge.name}{kept}")
    judged = iter(ask_parsed(judge, flat, read_rating))
    return {key: [next(judged) for _ in prompts] for key, prompts in asked.items()}


def _is_steerable(settings: ScoreSettings, ratings: Sequence[Judged[int]]) -> bool:
    value = aggregated(ratings, settings.aggregate)
    return value is not None and value >= settings.min_steerability


def _row(
    settings: ScoreSettings, one: Subject, steerability: list[Judged[int]], similarity: list[Judged[int]] | None
) -> ScoreRow:
    steered = aggregated(steerability, settings.aggregate)
    steerable = None if steered is None else steered >= settings.min_steerability
    found = aggregated(similarity, settings.aggregate) if similarity is not None else None
    missing = _reasons(settings, "steerability", steerability) + _reasons(settings, "similarity", similarity or [])
    if steerable is False and not one.is_random:
        missing.append(f"not steerable: rated {steered:.2g}, below {settings.min_steerability:g}")
    prompts = [
        {
            "prompt": prompt,
            "steerability": steerability[number].value,
            "similarity": similarity[number].value if similarity else None,
        }
        for number, prompt in enumerate(settings.prompt)
    ]
    return ScoreRow(
        number=one.number,
        partition=one.partition,
        source=one.source.upper(),
        steerability=steered,
        steerable=steerable,
        similarity=found,
        score=None if found is None else 6 - found,
        missing=missing,
        stitch_r2=None,
        active_pairs=None,
        details={"prompts": prompts},
    )


def _reasons(settings: ScoreSettings, what: str, ratings: Sequence[Judged[int]]) -> list[str]:
    return [
        f"{what}, prompt {prompt!r}: {one.reason}"
        for prompt, one in zip(settings.prompt, ratings, strict=False)
        if one.value is None
    ]


def _generations(
    settings: ScoreSettings, one: Subject, name: str, writers: dict[str, Writer], *, with_target: bool
) -> list[dict[str, Any]]:
    sides = [(one.source, "source"), *([(one.target, "target")] if with_target else [])]
    return [
        {
            "subject": name,
            "model": side.upper(),
            "role": role,
            "prompt": prompt,
            "strength": written.strength,
            "text": written.text,
        }
        for side, role in sides
        for prompt, texts in zip(settings.prompt, writers[side].read(one), strict=True)
        for written in texts
    ]
