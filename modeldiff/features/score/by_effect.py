"""The score without a judge that reads: what the push does to next-token distributions, in one model after the other.

Legend: N subjects of a group, S strengths, K buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from modeldiff.console import progress, say
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.score.compare import Compared, compare, steerability, without_common
from modeldiff.features.score.effect import Effect, EffectMeter
from modeldiff.features.score.result import ScoreRow
from modeldiff.features.score.subjects import RANDOM, Subject, Subjects
from modeldiff.features.splice import stored_gap
from modeldiff.features.windows import Window
from modeldiff.lm.buckets import OTHER, Buckets, common_buckets, token_strings
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.load import load_tokenizer
from modeldiff.lm.residual import verify_hook
from modeldiff.workspace import Work
from modeldiff.workspace.files import replace_into, temporary_path
from modeldiff.workspace.plan import SIDES

_RAISED = 6
Effects = dict[tuple[str, str], Effect]
"""By the side that was pushed and `Subject.key`."""


@dataclass(frozen=True)
class EffectScores:
    """What `score_by_effect` gives."""

    rows: list[ScoreRow]
    """In the order of the subjects; `stitch_r2` and `active_pairs` are not filled in."""
    mismatched: dict[tuple[str, str], list[float]]
    """By partition and source: scores of effects that do not belong together."""
    buckets: int


def score_by_effect(
    subjects: Subjects,
    strengths: Sequence[float],
    targets: dict[str, Harvested],
    windows: Sequence[Window],
    encoder: Encoder,
    device: torch.device,
    dtype: torch.dtype,
    work: Work,
) -> EffectScores:
    """Push every subject in both models, one model in memory at a time, and compare what comes of it.

    Raises:
        InputError: a model is not the one that was harvested, or no string is a token of both.
        MachineError: a batch does not fit into memory.
    """
    buckets = common_buckets({side: token_strings(load_tokenizer(targets[side].ref)) for side in SIDES})
    if len(buckets.names) <= 2:
        raise InputError(
            "no string is a single token of both models, so their next-token distributions cannot be compared: use "
            "--judge local or --judge openai"
        )
    say(f"{len(buckets.names) - 2:,} strings are a token of both models")
    for side in SIDES:
        _measure_side(side, subjects, strengths, targets[side], windows, encoder, buckets, device, dtype, work)
    rows: list[ScoreRow] = []
    mismatched: dict[tuple[str, str], list[float]] = {}
    own = _own_scores(subjects, work, len(strengths))
    for partition, source, group in subjects.groups():
        randoms = subjects.of(RANDOM, source)
        effects = _loaded(work, [*group, *randoms])
        rest = {side: _rest(side, group, randoms, effects, len(strengths)) for side in SIDES}
        sizes = {side: _sizes(side, group, effects, len(strengths)) for side in SIDES}
        target = group[0].target
        compared = compare(rest[source], rest[target], sizes[source], sizes[target])
        sizes_R = np.array([float(effects[source, one.key].size_S[-1]) for one in randoms])
        for number, one in enumerate(group):
            others_R = np.delete(sizes_R, number) if one.is_random else sizes_R
            row = _row(one, number, compared, others_R, effects, strengths, buckets, rest)
            if partition == "shared" and one.number in own and row.score is not None:
                row.details["own_direction_score"] = own[one.number]
            rows.append(row)
        mismatched[partition, source] = (6 - compared.mismatched).tolist()
    return EffectScores(rows, mismatched, len(buckets.names))


def _measure_side(
    side: str,
    subjects: Subjects,
    strengths: Sequence[float],
    target: Harvested,
    windows: Sequence[Window],
    encoder: Encoder,
    buckets: Buckets,
    device: torch.device,
    dtype: torch.dtype,
    work: Work,
) -> None:
    """Write what is missing of a side's effects, a file per subject."""
    missing = [one for one in subjects.all if not _path(work, side, one).exists()]
    if not missing:
        return
    say(f"model {side.upper()}: {target.ref.short_name}, after block {target.layer}, on {device}")
    lm = target.open(device, dtype)
    verify_hook(lm, target.layer)
    stored_gap(lm, target.layer, side, encoder, windows, encoder.store.mean[side])
    meter = EffectMeter(lm, target.layer, side, buckets, windows)
    total = len(subjects.all)
    with progress(f"push in {side.upper()}", total, "directions", total - len(missing)) as bar:
        for one in missing:
            unit_D = one.vector(side)
            vectors = [strength * unit_D for strength in strengths]
            if side == one.source:
                # Once more at the length of the random directions, for the question of whether it is steerable.
                vectors.append(
                    subjects.typical_norm[side] * unit_D / unit_D.norm().clamp_min(torch.finfo(torch.float32).tiny)
                )
            _store(_path(work, side, one), meter.measure(vectors))
            bar.advance()


def _rest(side: str, group: list[Subject], randoms: list[Subject], effects: Effects, strengths: int) -> torch.Tensor:
    """A group's effects (N, S, K) in one model, at the strengths that both models were pushed with, without what the
    random directions have in common."""
    stacked, random_RSK = (
        torch.stack([effects[side, one.key].effect_SK[:strengths] for one in chosen]) for chosen in (group, randoms)
    )
    return without_common(stacked, random_RSK, [randoms.index(one) if one.is_random else None for one in group])


def _sizes(side: str, group: list[Subject], effects: Effects, strengths: int) -> torch.Tensor:
    """(N, S) root mean square angles."""
    return torch.stack([effects[side, one.key].size_S[:strengths] for one in group])


def _own_scores(subjects: Subjects, work: Work, strengths: int) -> dict[int, float]:
    """Scores of shared features when the other model's own direction of the feature takes the place of the stitched
    one: how alike the crosscoder's two directions are in what they do, whatever the stitch loses."""
    groups = {side: subjects.of("shared", side) for side in SIDES}
    if not groups["a"]:
        return {}
    effects = _loaded(work, [one for side in SIDES for one in (*groups[side], *subjects.of(RANDOM, side))])
    rest = [_rest(side, groups[side], subjects.of(RANDOM, side), effects, strengths) for side in SIDES]
    compared = compare(*rest, *(_sizes(side, groups[side], effects, strengths) for side in SIDES))
    return dict(zip((one.number for one in groups["a"]), (6 - compared.similarity_N).tolist(), strict=True))


def _row(
    one: Subject,
    number: int,
    compared: Compared,
    sizes_R: np.ndarray,
    effects: Effects,
    strengths: Sequence[float],
    buckets: Buckets,
    rest: dict[str, torch.Tensor],
) -> ScoreRow:
    source, target = effects[one.source, one.key], effects[one.target, one.key]
    share, steerable = steerability(float(source.size_S[-1]), sizes_R)
    at = dict(zip((one.source, one.target), compared.strengths_N2[number].tolist(), strict=True))
    is_scored = steerable or one.is_random
    found = float(compared.similarity_N[number]) if is_scored else None
    why = "not steerable: its effect on its own model is within what 95 % of random directions of the same norm have"
    details = {
        "size_source": float(source.size_S[at[one.source]]),
        "size_target": float(target.size_S[at[one.target]]),
        "size_at_typical_norm": float(source.size_S[-1]),
        "size_random_median": float(np.median(sizes_R)),
        "at": [strengths[at[side]] for side in (one.source, one.target)],
        "raises": [_raised(rest[side][number, at[side]], buckets) for side in (one.source, one.target)],
    }
    return ScoreRow(
        number=one.number,
        partition=one.partition,
        source=one.source.upper(),
        steerability=share,
        steerable=steerable,
        similarity=found,
        score=None if found is None else 6 - found,
        missing=[] if is_scored else [why],
        stitch_r2=None,
        active_pairs=None,
        details=details,
    )


def _raised(effect_K: torch.Tensor, buckets: Buckets) -> list[str]:
    """The strings that become likelier, most of all first."""
    value, index = effect_K.topk(min(_RAISED + 1, len(effect_K)))
    names = [buckets.names[i] for v, i in zip(value.tolist(), index.tolist(), strict=True) if v > 0]
    return [name for name in names if name != OTHER][:_RAISED]


def _path(work: Work, side: str, one: Subject) -> Path:
    return work.resume / f"effects-{side}" / f"{one.key}.safetensors"


def _store(path: Path, effect: Effect) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_path(path)
    save_file({"effect": effect.effect_SK, "size": effect.size_S}, temporary)
    replace_into(temporary, path)


def _loaded(work: Work, subjects: Sequence[Subject]) -> Effects:
    """What was stored of these, in both models."""
    found = {}
    for side in SIDES:
        for one in subjects:
            arrays = load_file(_path(work, side, one))
            found[side, one.key] = Effect(arrays["effect"], arrays["size"])
    return found
