"""The screen: features, stitch, impact, a funnel, descriptions and scores of what is left; a `screen` artifact out.

Each stage is a cached artifact of its own, so that a screen that was cut short, or is repeated with other limits, only
does what is new.

screen.json (normative):
    format, features, crosscoder, activations,
    stitch, impact, explanation, score          what the list rests on; null: not made
    judge                                       name of the judge that reads texts; null without one
    limits                                      of the steps, as asked for
    missing                                     evidence that is not there, each with the command that makes it
    sides.A, sides.B                            steps (name, left, unknown); judged: with a judge, how many were
                                                explained and kept; list: the short list, an `Entry` each; controls:
                                                what chance shows beside the figures of the list, see `_controls`
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np

from modeldiff.console import say
from modeldiff.errors import InputError
from modeldiff.features.explain.run import run as run_explain
from modeldiff.features.explain.settings import ExplainSettings
from modeldiff.features.explain.stored import Explained, read_explanations
from modeldiff.features.impact.result import Impact, read_impact
from modeldiff.features.impact.run import run as run_impact
from modeldiff.features.impact.settings import ImpactSettings
from modeldiff.features.missing import evidence_about
from modeldiff.features.run import run as run_features
from modeldiff.features.score.result import ScoreRow, read_scores
from modeldiff.features.score.run import run as run_score
from modeldiff.features.score.settings import ScoreSettings
from modeldiff.features.settings import FeaturesSettings
from modeldiff.features.stored import read_info
from modeldiff.features.table import FeatureTable
from modeldiff.judge.settings import JudgeSettings
from modeldiff.screen.funnel import Evidence, Funnel, Limits, fold, run_funnel
from modeldiff.screen.settings import ScreenSettings
from modeldiff.stitch.run import run as run_stitch
from modeldiff.stitch.settings import StitchSettings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

KIND = "screen"
SCHEMA = 3
FORMAT = 1
SCREEN_NAME = "screen.json"
FIELDS = {
    "format", "features", "crosscoder", "activations", "stitch", "impact", "explanation", "score", "judge", "limits",
    "missing", "sides",
}  # fmt: skip
# With a judge, so many features are explained for each place of the short list: some will not be interpretable.
_SPARE = 2


@dataclass(frozen=True)
class Entry:
    """One feature of the short list with its evidence. None: not measured."""

    rank: int
    id: int
    partition: str
    density: float
    r2_own: float
    r2_other: float
    verdict: str | None
    impact_own: float
    """Nats by which the model's predictions change in a window of text when the feature is removed."""
    impact_other: float
    asymmetry: float
    per_firing: float
    surface: float
    rank_score: float
    doubles: list[int]
    """Features further down that fire on the same places and were folded into this one."""
    sources: dict[str, float]
    description: str | None
    detection: float | None
    """Of held-out texts spread over its activations told right: by a judge's explanation, else by the words alone."""
    detection_null: float | None
    concerning: bool | None
    score: float | None
    """Behavioural exclusivity, 1 to 5."""
    score_missing: str | None

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return dataclasses.asdict(self)


def run(settings: ScreenSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Screen a crosscoder, or answer with the screen that was made before.

    Args:
        force: make the list again; the stages before it are taken from the cache if they are up to date.

    Raises:
        InputError: there is no such crosscoder, its activations or their texts are gone, a model is not known, or the
            judge refuses or would be asked too often.
        DamagedError: a file of the inputs is damaged.
        MachineError: the judge gives no answers, or memory is short. What was made before is kept.
    """
    table, impact, inputs = _measured(settings, workspace)
    sides = (settings.exclusive,) if settings.exclusive else ("A", "B")
    funnels = {side: run_funnel(_evidence(settings, table, impact, side), _limits(settings)) for side in sides}
    folded = {side: _folded(settings, table, funnels[side]) for side in sides}
    wanted = {side: _heads(funnels[side].ranked, folded[side], _examined(settings)) for side in sides}
    ids = tuple(dict.fromkeys(feature for side in sides for feature in wanted[side]))
    explained: dict[int, Explained] = {}
    if ids:
        explanation = run_explain(_explain_settings(settings, table, ids), workspace)
        explained, inputs["explanation"] = read_explanations(explanation), explanation
    kept = {side: [i for i in wanted[side] if _interpretable(settings, explained[i])] for side in sides}
    short = {side: kept[side][: settings.top] for side in sides}
    scores: dict[int, dict[str, ScoreRow]] = {}
    ids = tuple(dict.fromkeys(feature for side in sides for feature in short[side]))
    if ids and settings.score:
        score = run_score(_score_settings(settings, table, inputs["stitch"], ids), workspace)
        scores, inputs["score"] = read_scores(score), score

    def build(work: Work) -> dict[str, Any]:
        found = {}
        for side in sides:
            entries = [
                _entry(rank, feature, side, table, impact, funnels[side], folded[side], explained, scores)
                for rank, feature in enumerate(short[side], 1)
            ]
            found[side] = {
                "steps": [dataclasses.asdict(step) for step in funnels[side].steps],
                "judged": {"explained": len(wanted[side]), "kept": len(kept[side])} if _asks(settings) else None,
                "list": [entry.to_json() for entry in entries],
                "controls": _controls(table, impact, side),
            }
        named = {
            kind: inputs[kind].ref if kind in inputs else None for kind in ("stitch", "impact", "explanation", "score")
        }
        work.write_json(
            SCREEN_NAME,
            {
                "format": FORMAT,
                "features": table.artifact.ref,
                "crosscoder": table.info["crosscoder"],
                "activations": table.info["activations"],
                **named,
                "judge": settings.judge_model if _asks(settings) else None,
                "limits": dataclasses.asdict(_limits(settings)),
                "missing": _missing(settings, workspace, table.artifact),
                "sides": found,
            },
        )
        return {f"listed_{side}": len(short[side]) for side in sides}

    # With an empty list no explanation says which judge it was.
    resolved = {"judge_model": settings.judge_model if _asks(settings) else None}
    order = Order(KIND, settings, {kind: one.as_input() for kind, one in inputs.items()}, SCHEMA, resolved)
    return produce(workspace, order, build, name=name, force=force)


def read_screen(artifact: Artifact) -> dict[str, Any]:
    """screen.json, checked.

    Raises:
        DamagedError: the file is missing, damaged, or has other fields.
        InputError: written by a newer or by an older modeldiff.
    """
    return read_info(artifact, SCREEN_NAME, version=FORMAT, fields=FIELDS, again="modeldiff screen")


def _measured(settings: ScreenSettings, workspace: Workspace) -> tuple[FeatureTable, Impact, dict[str, Artifact]]:
    """Everything that is measured for all features, cheapest first."""
    say("screen 1/4: features, what predicts them, twins")
    features = run_features(
        FeaturesSettings(crosscoder=settings.crosscoder, activations=settings.activations, device=settings.device),
        workspace,
    )
    table = FeatureTable(features)
    if not table.info["has_texts"]:  # said before anything that takes long
        raise InputError(
            f"{table.artifact.ref} was measured on activations without texts: a screen needs them; import them again "
            "with --import-texts"
        )
    crosscoder, activations = (workspace.source_of(features, kind).ref for kind in ("crosscoder", "activations"))
    say("screen 2/4: maps between the models; what each feature does to their predictions")
    stitch = run_stitch(StitchSettings(activations=activations, device=settings.device), workspace)
    impact = run_impact(
        ImpactSettings(
            crosscoder=crosscoder,
            activations=activations,
            stitch=stitch.ref,
            pairs=settings.pairs,
            samples=settings.samples,
            seed=settings.seed,
            model_path_a=settings.model_path_a,
            model_path_b=settings.model_path_b,
            device=settings.device,
        ),
        workspace,
    )
    say("screen 3/4: descriptions of what is left" if not _asks(settings) else "screen 3/4: the judge explains")
    return table, read_impact(impact), {"features": features, "stitch": stitch, "impact": impact}


def _evidence(settings: ScreenSettings, table: FeatureTable, impact: Impact, side: str) -> Evidence:
    own, other = side.lower(), "b" if side == "A" else "a"
    partitions = (side,) if settings.partition == "exclusive" else (side, "shared")
    twin_F = np.zeros(table.n_features)
    opposite = "B" if side == "A" else "A"
    for feature in range(table.n_features):
        twin_F[feature] = max((t.correlation for t in table.twins(feature) if t.partition == opposite), default=0.0)
    own_F, scale = table.statistics[f"r2_{own}"].astype(np.float64), table.scales[own]
    # As for the verdicts: where its own model does not explain it beyond chance either, the ratio means nothing.
    own_F = np.where(own_F > scale.legible_from, own_F, np.nan)
    return Evidence(
        candidate_F=np.isin(table.partition_F, partitions),
        firings_F=impact.arrays["firings"].astype(np.int64),
        density_F=table.statistics["density"].astype(np.float64),
        own_F=own_F,
        other_F=table.statistics[f"r2_{other}"].astype(np.float64),
        reference=scale.ratio_median,
        twin_F=twin_F,
        per_firing_F=impact.per_firing(side),
        asymmetry_F=impact.asymmetry(side),
        surface_F=impact.surface(),
    )


def _limits(settings: ScreenSettings) -> Limits:
    return Limits(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Limits)})


def _folded(settings: ScreenSettings, table: FeatureTable, funnel: Funnel) -> dict[int, int]:
    twins = {feature: {t.id: t.correlation for t in table.twins(feature)} for feature in funnel.ranked}
    return fold(funnel.ranked, twins, settings.twin, _examined(settings))


def _heads(ranked: list[int], folded: dict[int, int], most: int) -> list[int]:
    return [feature for feature in ranked if feature not in folded][:most]


def _asks(settings: ScreenSettings) -> bool:
    """Whether there is a judge that reads texts."""
    return settings.judge != "effect"


def _examined(settings: ScreenSettings) -> int:
    return settings.top * (_SPARE if _asks(settings) else 1)


def _interpretable(settings: ScreenSettings, explained: Explained) -> bool:
    """What the judge's explanation detects well enough. Without a judge everything stays: the words alone are too
    coarse to decide."""
    if not _asks(settings):
        return True
    detection = explained.judge.detection if explained.judge else None
    return detection is not None and detection >= settings.least_detection


def _judge_fields(settings: ScreenSettings) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(JudgeSettings)}


def _explain_settings(settings: ScreenSettings, table: FeatureTable, ids: tuple[int, ...]) -> ExplainSettings:
    judge = _judge_fields(settings) if _asks(settings) else {}
    return ExplainSettings(
        feature=ids, features=table.artifact.ref, seed=settings.seed, device=settings.device, **judge
    )


def _score_settings(
    settings: ScreenSettings, table: FeatureTable, stitch: Artifact, ids: tuple[int, ...]
) -> ScoreSettings:
    say("screen 4/4: what pushing them does in both models")
    return ScoreSettings(
        feature=ids,
        features=table.artifact.ref,
        stitch=stitch.ref,
        seed=settings.seed,
        model_path_a=settings.model_path_a,
        model_path_b=settings.model_path_b,
        device=settings.device,
        **_judge_fields(settings),
    )


def _missing(settings: ScreenSettings, workspace: Workspace, features: Artifact) -> list[dict[str, str]]:
    """What is not known about the short list, and how to come to know it."""
    (screen,) = (one.command for one in evidence_about(workspace, features) if one.kind == KIND)
    found = []
    if not _asks(settings):
        again = _options(settings, leave_out={field.name for field in dataclasses.fields(JudgeSettings)})
        found.append(
            {
                "evidence": "explanation, detection and ratings by a judge that reads texts",
                "command": " ".join([screen, *again, "--judge openai --judge-model NAME"]),
            }
        )
    if not settings.score:
        found.append(
            {
                "evidence": "what pushing the features does in both models",
                "command": " ".join([screen, *_options(settings, leave_out={"score"})]),
            }
        )
    return found


def _options(settings: ScreenSettings, *, leave_out: set[str]) -> list[str]:
    """The options that were given and change what comes out, as on the command line."""
    judging = {field.name for field in dataclasses.fields(JudgeSettings)}
    options = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        changes = field.name in settings.result_json() or field.name in judging
        if value == field.default or not changes or field.name in leave_out:
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{name}" if value else f"--no-{name}")
        else:
            options.append(f"--{name} {shlex.quote(str(value))}")
    return options


def _controls(table: FeatureTable, impact: Impact, side: str) -> dict[str, Any]:
    """What chance shows, from the artifacts that hold the figures: 5 %, 50 % and 95 % of each control.

    Returns:
        random_ratio: R² other / own of random directions; random_asymmetry: of removing them; stitched_asymmetry: of
        shared features moved through the stitch, as exclusive ones are; surface: of wrong words. None: not measured.
    """
    random = table.info["random_directions"].get(side.lower())
    return {
        "random_ratio": {
            share: random[name] for share, name in (("5%", "ratio_low"), ("50%", "ratio_median"), ("95%", "ratio_high"))
        }
        if random
        else None,
        "random_asymmetry": impact.info["controls"][side.lower()]["asymmetry"],
        "stitched_asymmetry": impact.info["shared"][side.lower()]["asymmetry_stitched"],
        "surface": impact.info["surface"]["null_r2"],
    }


def _entry(
    rank: int,
    feature: int,
    side: str,
    table: FeatureTable,
    impact: Impact,
    funnel: Funnel,
    folded: dict[int, int],
    explained: dict[int, Explained],
    scores: dict[int, dict[str, ScoreRow]],
) -> Entry:
    row = table.row(feature, examples=0)
    own, other = ("r2_a", "r2_b") if side == "A" else ("r2_b", "r2_a")
    one, score = explained.get(feature), scores.get(feature, {}).get(side)
    detection = null = None
    if one is not None:
        detection, null = one.detection.spread, one.detection.spread_null
        if one.judge is not None:
            detection, null = one.judge.detection, one.judge.null
    return Entry(
        rank=rank,
        id=feature,
        partition=row.partition,
        density=row.density,
        r2_own=float(table.statistics[own][feature]),
        r2_other=float(table.statistics[other][feature]),
        verdict=row.verdict,
        impact_own=float(impact.own(side)[feature]),
        impact_other=float(impact.other(side)[feature]),
        asymmetry=float(impact.asymmetry(side)[feature]),
        per_firing=float(impact.per_firing(side)[feature]),
        surface=float(impact.surface()[feature]),
        rank_score=float(funnel.score_F[feature]),
        doubles=[double for double, head in folded.items() if head == feature],
        sources=row.sources,
        description=one.text if one is not None else None,
        detection=detection,
        detection_null=null,
        concerning=one.concerning if one is not None else None,
        score=score.score if score is not None else None,
        score_missing="; ".join(score.missing) if score is not None and score.missing else None,
    )
