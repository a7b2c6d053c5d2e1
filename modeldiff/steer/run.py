"""The steer stage: features and one or both models in, a `steering` artifact out.

Layout (normative; null: no number, because a format overflowed or a text is too short):
    steering.json        what was pushed and how (`sides`, by model), sampling, prompts; `dose`: one row for each model,
                         direction and strength; `coherent`: by model, how far its strengths stay coherent
    generations.jsonl    one object per line, by model (the one steered first), direction, strength and prompt:
                         model; direction (feature, or "random 1", ...); strength (0: unsteered); prompt; text; tokens;
                         nats_per_token of the text for the unsteered model, perplexity_ratio to the unsteered text;
                         repeated, repeated_change (share of 4-grams); kl_first, kl, kl_tokens: KL(steered || unsteered)
                         at the end of the prompt, and on average over the unsteered continuation of so many tokens
    figures/dose.png     effect, perplexity and repetition over the strength
"""

from __future__ import annotations

import json
from typing import Any

import torch

from modeldiff.console import progress, say
from modeldiff.crosscoder import load
from modeldiff.crosscoder.direction import Direction, direction_of
from modeldiff.errors import InputError
from modeldiff.linear.stitch import find_stitch
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.harvested import Harvested, harvested, side_info
from modeldiff.sides import SIDES
from modeldiff.steer.figure import dose_figure
from modeldiff.steer.inputs import find_features
from modeldiff.steer.push import Push, other_push, uses_stitch
from modeldiff.steer.settings import SteerSettings
from modeldiff.steer.summary import COHERENT_RATIO, COHERENT_REPETITION, coherent_range, dose_rows
from modeldiff.steer.sweep import pushes, sweep
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json, sha256_json

SCHEMA = 4
FORMAT = 2
STEERING_NAME = "steering.json"
GENERATIONS_NAME = "generations.jsonl"
FIGURE_NAME = "figures/dose.png"


def run(settings: SteerSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Generate from every prompt, unsteered and at each strength, and measure what the push does.

    Everything that can be wrong with the request is found before a model is loaded; one model is in memory at a time.

    Raises:
        InputError: no such feature, the model does not have it, it never fires, no model is known, no stitch, or no
            prompt.
    """
    features = find_features(workspace, settings.crosscoder, settings.features)
    source = workspace.source_of(features, "crosscoder")
    side = settings.model.lower()
    crosscoder = load(source)
    direction = direction_of(crosscoder, features, settings.feature, side)
    prompts = read_prompts(settings)
    target = _target(features, side, settings.model_path, "--model-path")
    sides = [Push(target, direction.unit_D, "decoder")]
    if settings.both:
        (other,) = (one for one in SIDES if one != side)
        moved = uses_stitch(settings, direction.partition)
        stitch = find_stitch(workspace, source.manifest.inputs["activations"], settings.stitch) if moved else None
        other_target = _target(features, other, settings.other_model_path, "--other-model-path")
        sides.append(other_push(settings, other_target, direction, crosscoder, features, stitch))
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    if settings.features is None:
        say(f"feature {settings.feature} ({direction.partition}) of {source.ref}, as measured in {features.ref}")

    inputs = {
        "features": features.as_input(),
        "crosscoder": source.as_input(),
        "model": target.as_input(),
        "prompts": Input(label=str(settings.prompts or "--prompt"), digest=sha256_json(list(prompts))),
    }
    for push in sides[1:]:
        inputs["other model"] = push.target.as_input()
        if push.stitch:
            inputs["stitch"] = push.stitch.as_input()

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        return _build(settings, sides, direction, prompts, device, dtype, work)

    resolved = {"dtype": str(dtype).removeprefix("torch."), "layer": target.layer}
    if settings.temperature > 0:
        resolved["batch"] = settings.batch
    return produce(workspace, Order("steering", settings, inputs, SCHEMA, resolved), build, name=name, force=force)


def read_prompts(settings: SteerSettings) -> tuple[str, ...]:
    """The prompts, from --prompt or the lines of the --prompts file (empty lines are skipped; `\\n` is not special).

    Raises:
        InputError: the file cannot be read as UTF-8 text, or there is no prompt.
    """
    prompts = settings.prompt
    if settings.prompts is not None:
        try:
            prompts = tuple(settings.prompts.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise InputError(f"{settings.prompts}: the prompts cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise InputError(f"{settings.prompts}: expected prompts as UTF-8 text, one per line") from None
        prompts = tuple(prompt for prompt in prompts if prompt.strip())
    if not prompts or not all(prompt.strip() for prompt in prompts):
        where = settings.prompts or "--prompt"
        raise InputError(f"{where}: a prompt is empty; give the text that the model is to continue")
    return tuple(dict.fromkeys(prompts))


def _target(features: Artifact, side: str, path: str | None, option: str) -> Harvested:
    info = read_json(features.file("features.json"))["sides"][side]
    return harvested(side, side_info(info), features.ref, path, option)


def _build(
    settings: SteerSettings,
    sides: list[Push],
    direction: Direction,
    prompts: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    work: Work,
) -> dict[str, Any]:
    records: list[dict[str, Any]] = []
    chat = {}
    with progress("steer", len(sides) * len(pushes(settings)), "pushes") as bar:
        for push in sides:
            found, chat[push.model] = sweep(settings, push, prompts, device, dtype, work.resume, bar)
            records += found
    # ASCII: no line separator of Unicode can break a line of the file.
    lines = "".join(json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n" for record in records)
    work.write_bytes(GENERATIONS_NAME, lines.encode())
    rows = dose_rows(records)
    coherent = {push.model: coherent_range(rows, push.model) for push in sides}
    work.write_bytes(FIGURE_NAME, dose_figure(rows, records, _labels(sides), _title(settings, direction, prompts)))
    strengths = list(dict.fromkeys(row["strength"] for row in rows))
    work.write_json(
        STEERING_NAME,
        {
            "format": FORMAT,
            "model": settings.model,
            "feature": settings.feature,
            "partition": direction.partition,
            "max_activation": direction.max_activation,
            "sides": {push.model: {**push.described(), "chat": chat[push.model]} for push in sides},
            "strengths": strengths,
            "random_directions": settings.random_directions,
            "prompts": list(prompts),
            "max_new_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": settings.seed,
            "dose": rows,
            "coherent": coherent,
            "coherent_limits": {"perplexity_ratio": COHERENT_RATIO, "repeated_change": COHERENT_REPETITION},
        },
    )
    return {"prompts": len(prompts), "strengths": strengths, "partition": direction.partition, "coherent": coherent}


def _labels(sides: list[Push]) -> dict[str, str]:
    """What the figure calls each model."""
    return {push.model: f"{push.model}, {push.words} ({push.in_medians:.2g} median norms)" for push in sides}


def _title(settings: SteerSettings, direction: Direction, prompts: tuple[str, ...]) -> str:
    partition = "shared" if direction.partition == "shared" else f"{direction.partition}-exclusive"
    drawn = f"temperature {settings.temperature:g}" if settings.temperature > 0 else "greedy"
    count = f"{len(prompts)} prompt{'s' if len(prompts) > 1 else ''}"
    return (
        f"Feature {settings.feature} ({partition}) pushed: {count}, {settings.max_new_tokens} new tokens, {drawn}, "
        f"seed {settings.seed}"
    )
