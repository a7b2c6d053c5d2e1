"""The score as in the paper (section 6): features, a stitch and both models in, a `score` artifact out.

Both models write while they are pushed, and a judge says how alike the push shows. First the sources write and the
judge says which directions do anything that can be named; only for these, and for the random directions, the targets
write and the judge compares. One model of the pair is in memory at a time, and none while the judge is asked; a local
judge stays in memory once it was asked. Texts and answers are kept as they come: the same command continues.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from modeldiff.console import progress, say
from modeldiff.features.inputs import open_measured
from modeldiff.features.measures.score import ScoreSettings, result
from modeldiff.features.measures.score.directions import ScoredDirection, find_directions
from modeldiff.features.measures.score.result import MIN_STEERABILITY, ScoreRow, summary
from modeldiff.judge.choice import open_judge
from modeldiff.judge.client import Judge, Judged, Prompt
from modeldiff.judge.questions import WORDING, Written, ask_similarity, ask_steerability, read_rating
from modeldiff.linear.stitch import DIRECTIONS, find_stitch, load_stitch
from modeldiff.lm.chat import open_chat, uses_chat
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.generate import generate
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.records import to_json
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.files import json_lines, read_json
from modeldiff.workspace.kept import is_sound, keep_json

SCHEMA = 5
# The paper's 3 prompts at 10 strengths.
_BATCH_SIZE = 32


def run(settings: ScoreSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Score the behavioural exclusivity of a sample of features, with random directions as controls.

    Raises:
        InputError: there are no features, no stitch of their activations, no such feature, a model is not known or not
            the one that was harvested, or the judge refuses or would be asked too often.
        DamagedError: a file of the inputs is damaged.
        MachineError: the judge gives no answers, or a batch does not fit into memory. What was made is kept.
    """
    features = workspace.find("features", settings.features)
    source, activations = (workspace.source_of(features, kind) for kind in ("crosscoder", "activations"))
    measured = open_measured(workspace, source.ref, activations.ref, what="score")
    stitch_artifact = find_stitch(workspace, activations.as_input(), settings.stitch)
    if settings.features is None:
        say(f"score of {features.ref} ({source.ref}) by way of {stitch_artifact.ref}")
    stitch = load_stitch(stitch_artifact)
    directions = find_directions(settings, measured.crosscoder, features, stitch)
    models = measured.models(settings)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    dtype_name = str(dtype).removeprefix("torch.")
    judge = open_judge(settings, workspace.judge_answers, device)
    inputs = {**measured.inputs, "features": features.as_input(), "stitch": stitch_artifact.as_input()}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=dtype_name)
        writers = {side: Writer(settings, models[side], device, dtype, work.resume / f"texts-{side}") for side in SIDES}
        rows, generations = _score(settings, directions, writers, judge)
        work.write_bytes(result.GENERATIONS_NAME, json_lines(generations))
        groups = [
            summary(*group, list(members))
            for group, members in itertools.groupby(rows, key=lambda row: (row.partition, row.source))
        ]
        work.write_json(
            result.SCORE_NAME,
            {
                "format": result.FORMAT,
                **{kind: one.label for kind, one in inputs.items()},
                "stitch_r2": {way: stitch.info["maps"][way]["r2"] for way in DIRECTIONS},
                "judge": judge.name,
                "strengths": list(settings.strengths[1:]),
                "prompts": list(settings.prompt),
                "groups": groups,
                "rows": [to_json(row) for row in rows],
            },
        )
        shown = ("n", "scored", "not_steerable", "missing", "median", "share_high")
        return {f"{one['partition']} from {one['source']}": {key: one[key] for key in shown} for one in groups}

    resolved = {"dtype": dtype_name, "judge_identity": json.dumps(judge.identity, sort_keys=True), "wording": WORDING}
    read = {f"model_{side}": model.as_input(workspace.digest_of) for side, model in models.items()}
    order = Order("score", settings, inputs | read, SCHEMA, resolved)
    return produce(workspace, order, build, name=name, force=force)


def _score(
    settings: ScoreSettings, directions: Sequence[ScoredDirection], writers: dict[str, Writer], judge: Judge
) -> tuple[list[ScoreRow], list[dict[str, Any]]]:
    """(a row for each direction, every generation)."""
    prompts = settings.prompt
    written = _texts(writers, directions, "source")
    steerability = _rate(judge, ask_steerability, prompts, {one: list(zip(texts)) for one, texts in written.items()})
    steerable = [one for one in directions if (_mean(steerability[one]) or 0) >= MIN_STEERABILITY]
    moved = _texts(writers, [one for one in directions if one.is_random or one in steerable], "target")
    both = {one: list(zip(written[one], texts, strict=True)) for one, texts in moved.items()}
    similarity = _rate(judge, ask_similarity, prompts, both)
    generations = [
        {
            "subject": one.name,
            "model": getattr(one, role).upper(),
            "role": role,
            "prompt": prompt,
            "strength": strength,
            "text": text,
        }
        for one in directions
        for role, texts in (("source", written[one]), ("target", moved.get(one, [])))
        for prompt, by_strength in zip(prompts, texts, strict=False)
        for strength, text in by_strength
    ]
    return [_row(prompts, one, steerability[one], similarity.get(one)) for one in directions], generations


def _texts(
    writers: dict[str, Writer], directions: Sequence[ScoredDirection], role: Literal["source", "target"]
) -> dict[ScoredDirection, list[list[Written]]]:
    # The model that wrote last comes first.
    for side in SIDES if role == "source" else reversed(SIDES):
        writers[side].write([one for one in directions if getattr(one, role) == side], role)
    return {one: writers[getattr(one, role)].read(one) for one in directions}


@dataclass(frozen=True)
class Writer:
    """Makes the texts of one model and keeps them in a folder; what is there already is not made again."""

    settings: ScoreSettings
    model: Harvested
    device: torch.device
    dtype: torch.dtype
    folder: Path

    def write(self, directions: Sequence[ScoredDirection], role: str) -> None:
        """Make what is missing of the texts of these directions, to which the model is the source or the target
        (`role`). It is in memory only meanwhile. Raises InputError if it is not the model that was harvested, or if
        prompt and text are too long for it."""
        missing = [one for one in directions if not is_sound(self._path(one.key))]
        begun = is_sound(self._path("unsteered"))
        if begun and not missing:
            return
        side, total = self.model.side, len(directions)
        say(f"model {side.upper()}: {self.model.ref.short_name}, after block {self.model.layer}, on {self.device}")
        lm = self.model.open(self.device, self.dtype)
        with progress(f"write {side.upper()} ({role})", total, "directions", total - len(missing)) as bar:
            if not begun:
                keep_json(self._path("unsteered"), {"texts": self._texts(lm, [torch.zeros(lm.width)])})
            for one in missing:
                pushes = [strength * one.unit_D[side] for strength in self.settings.strengths if strength]
                keep_json(self._path(one.key), {"texts": self._texts(lm, pushes)})
                bar.advance()

    def read(self, direction: ScoredDirection) -> list[list[Written]]:
        """For each prompt what the model wrote, strength by strength, unsteered first."""
        by_strength = [text for key in ("unsteered", direction.key) for text in read_json(self._path(key))["texts"]]
        return [list(zip(self.settings.strengths, texts, strict=True)) for texts in zip(*by_strength, strict=True)]

    def _texts(self, lm: LanguageModel, vectors: Sequence[torch.Tensor]) -> list[list[str]]:
        """For each vector (D,) the model's texts, one per prompt. As many at a time as a batch takes."""
        settings = self.settings
        chat = uses_chat(lm.tokenizer, settings.chat)
        prompts = [open_chat(lm.tokenizer, prompt) if chat else prompt for prompt in settings.prompt]
        options = {name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
        options["add_special_tokens"] = not chat
        at_once = max(1, _BATCH_SIZE // len(prompts))
        texts: list[list[str]] = []
        for start in range(0, len(vectors), at_once):
            chosen = vectors[start : start + at_once]
            vector_BD = torch.stack(list(chosen)).repeat_interleave(len(prompts), dim=0)
            with add_to_residual(lm, self.model.layer, vector_BD):
                made = generate(lm, prompts * len(chosen), batch_size=len(vector_BD), **options)
            texts += [made[i : i + len(prompts)] for i in range(0, len(made), len(prompts))]
        return texts

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _rate(
    judge: Judge,
    ask: Callable[..., Prompt],
    prompts: Sequence[str],
    texts: Mapping[ScoredDirection, Sequence[tuple[list[Written], ...]]],
) -> dict[ScoredDirection, list[Judged[int]]]:
    """A rating of each direction for each prompt. `ask` makes the question from what it shows of one model, or of
    both."""
    asked = [
        ask(f"{one.name}, prompt {number}", prompt, *shown)
        for one, by_prompt in texts.items()
        for number, (prompt, shown) in enumerate(zip(prompts, by_prompt, strict=True))
    ]
    say(f"{ask.__name__.removeprefix('ask_')}: {judge.planned(asked):,} calls to {judge.name}")
    judged = iter(judge.ask(asked, [read_rating] * len(asked)))
    return {one: [next(judged) for _ in prompts] for one in texts}


def _mean(ratings: Sequence[Judged[int]]) -> float | None:
    """The mean of the ratings that there are (how prompts are joined, the paper does not say)."""
    values = [one.value for one in ratings if one.value is not None]
    return statistics.fmean(values) if values else None


def _row(
    prompts: Sequence[str], one: ScoredDirection, steerability: list[Judged[int]], similarity: list[Judged[int]] | None
) -> ScoreRow:
    """What the ratings say; `similarity` None: the models were not compared."""
    steered, alike = _mean(steerability), _mean(similarity or ())
    rated = {"steerability": steerability, "similarity": similarity or [Judged(None, None)] * len(prompts)}
    missing = [
        f"{what}, prompt {prompt!r}: {rating.reason}"
        for what, ratings in rated.items()
        for prompt, rating in zip(prompts, ratings, strict=True)
        if rating.reason is not None
    ]
    if steered is not None and similarity is None:
        missing.append(f"not steerable: rated {steered:.2g}, below {MIN_STEERABILITY:g}")
    return ScoreRow(
        number=one.number,
        partition=one.partition,
        source=one.source.upper(),
        steerability=steered,
        score=None if alike is None else 6 - alike,
        missing=missing,
        ratings=[{what: ratings[number].value for what, ratings in rated.items()} for number in range(len(prompts))],
    )
