"""The score command: features, a stitch and both models in, a `score` artifact out (paper section 6).

See result.py for the layout of the artifact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from modeldiff.console import say
from modeldiff.features.codes import Encoder
from modeldiff.features.inputs import open_measured, outlier_factor_of
from modeldiff.features.measures.score.by_judge import score_by_judge
from modeldiff.features.measures.score.figure import score_figure
from modeldiff.features.measures.score.result import (
    FIGURE_NAME,
    FORMAT,
    GENERATIONS_NAME,
    SCORE_NAME,
    ScoreRow,
    summary,
)
from modeldiff.features.measures.score.settings import KIND, ScoreSettings
from modeldiff.features.measures.score.subjects import Subjects, find_subjects
from modeldiff.features.measures.score.texts import Writer
from modeldiff.features.measures.score.trust import with_stitch_r2
from modeldiff.judge.base import Judge
from modeldiff.judge.opening import open_judge
from modeldiff.judge.questions import WORDING
from modeldiff.linear.stitch import DIRECTIONS, Stitch, find_stitch, load_stitch
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.harvested import Harvested
from modeldiff.records import to_json
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

SCHEMA = 4


@dataclass(frozen=True)
class _Plan:
    """Everything that is found and checked before a model is loaded."""

    settings: ScoreSettings
    subjects: Subjects
    stitch: Stitch
    encoder: Encoder
    targets: dict[str, Harvested]
    judge: Judge
    refs: dict[str, str]
    device: torch.device
    dtype: torch.dtype


def run(settings: ScoreSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Score the behavioural exclusivity of a sample of features, with random directions as controls.

    Raises:
        InputError: there are no features, no stitch of their activations, no such feature, a model is not known or not
            the one that was harvested, or the judge refuses or would be asked too often.
        DamagedError: a file of the inputs is damaged.
        MachineError: the judge gives no answers, or a batch does not fit into memory. What was made is kept.
    """
    features = workspace.find("features", settings.features)
    source = workspace.source_of(features, "crosscoder")
    activations = workspace.source_of(features, "activations")
    measured = open_measured(workspace, source.ref, activations.ref, what=KIND)
    stitch_artifact = find_stitch(workspace, activations.as_input(), settings.stitch)
    if settings.features is None:
        say(f"score of {features.ref} ({source.ref}) by way of {stitch_artifact.ref}")
    stitch = load_stitch(stitch_artifact)
    subjects = find_subjects(settings, measured.crosscoder, features, stitch)
    store = measured.store
    targets = measured.models(settings.model_path_a, settings.model_path_b)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    judge = open_judge(settings, workspace.judge_answers, device)
    outlier_factor = outlier_factor_of(measured.source, None)
    inputs = {
        **measured.inputs,
        "features": features.as_input(),
        "stitch": stitch_artifact.as_input(),
        **{f"model_{side}": target.as_input() for side, target in targets.items()},
    }
    plan = _Plan(
        settings=settings,
        subjects=subjects,
        stitch=stitch,
        encoder=Encoder(measured.crosscoder, store, device, outlier_factor),
        targets=targets,
        judge=judge,
        refs={key: inputs[key].label for key in ("features", "crosscoder", "activations", "stitch")},
        device=device,
        dtype=dtype,
    )

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        return _build(plan, work)

    resolved = {
        "dtype": str(dtype).removeprefix("torch."),
        "judge_identity": json.dumps(judge.identity(), sort_keys=True),
        "wording": WORDING,
    }
    order = Order(KIND, settings, inputs, SCHEMA, resolved)
    return produce(workspace, order, build, name=name, force=force)


def _build(plan: _Plan, work: Work) -> dict[str, Any]:
    settings = plan.settings
    writers = {
        side: Writer(settings, plan.targets[side], plan.device, plan.dtype, work.resume / f"texts-{side}")
        for side in SIDES
    }
    rows, generations = score_by_judge(settings, plan.subjects, writers, plan.judge)
    # ASCII: no line separator of Unicode can break a line of the file.
    lines = "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in generations)
    work.write_bytes(GENERATIONS_NAME, lines.encode())
    rows = with_stitch_r2(rows, plan.stitch, plan.encoder)
    groups = [
        summary(partition, source.upper(), _of_group(rows, partition, source))
        for partition, source, _ in plan.subjects.groups()
    ]
    title = f"{plan.refs['features']} by way of {plan.refs['stitch']}: 5 does not carry over, 1 does"
    work.write_bytes(FIGURE_NAME, score_figure(groups, rows, title))
    work.write_json(
        SCORE_NAME,
        {
            "format": FORMAT,
            **plan.refs,
            "judge": plan.judge.identity(),
            "judge_name": plan.judge.name,
            "strengths": list(settings.strengths),
            "prompts": list(settings.prompt),
            "aggregate": settings.aggregate,
            "min_steerability": settings.min_steerability,
            "typical_norm": plan.subjects.typical_norm,
            "stitch_r2": {way: plan.stitch.info["maps"][way]["r2"] for way in DIRECTIONS},
            "groups": groups,
            "rows": [to_json(row) for row in rows],
        },
    )
    return {f"{one['partition']} from {one['source']}": _metrics(one) for one in groups}


def _of_group(rows: list[ScoreRow], partition: str, source: str) -> list[ScoreRow]:
    return [row for row in rows if (row.partition, row.source) == (partition, source.upper())]


def _metrics(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in ("n", "scored", "not_steerable", "missing", "median", "share_high")}
