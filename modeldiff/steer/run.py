"""The steer stage: features and one or both models in, a `steering` artifact out.

Layout (normative; null: no number, because a format overflowed or a text is too short; nats per token):
    steering.json
        format
        model                       that the feature is of: A or B
        feature, partition          number; A, shared or B
        max_activation              of the feature, normalised units: what strength 1 adds
        sides.*                     by model, the one steered first
            model_name, revision, layer
            stitch                  that moved the direction; null: it is the feature's own row in this model
            stitch_bias, stitch_r2  whether its constant was added; its held-out R², or null
            unit_norm               of what strength 1 adds, raw units
            unit_norm_in_medians    the same in median norms of the model's activations
            chat                    whether prompts went through a chat template
        strengths, random_directions, prompts
        max_new_tokens, temperature, top_p, seed
        dose[]                      a row for each model, direction (feature, or random: all together) and strength
            model, direction, strength, generations
            nats_per_token, repeated, kl    means of those in generations.jsonl
            perplexity_ratio        to the unsteered texts
            coherent                whether it is below the limits
        coherent.*                  by model, how far its strengths stay coherent without a gap: from and to
            from, to
            least, most             strengths that were tried
        coherent_limits             of a coherent strength
            perplexity_ratio        below this
            repeated_change         repeated above that of the unsteered texts by no more than this
    generations.jsonl               a line for each text, by model, direction, strength and prompt
        model                       the one steered first
        direction                   feature, or "random 1" and so on
        strength                    0: unsteered
        prompt, text, tokens        tokens: number in the text
        nats_per_token              of the text, for the unsteered model
        repeated                    share of its 4-grams that stood in it before
        kl, kl_tokens               KL(steered || unsteered), mean over the unsteered continuation, of so many tokens
    figures/dose.png                effect, perplexity and repetition over the strength
"""

from __future__ import annotations

from typing import Any

from modeldiff.catalogue.direction import direction_of
from modeldiff.console import progress, say
from modeldiff.crosscoder import load
from modeldiff.errors import InputError
from modeldiff.figures import write_figure
from modeldiff.linear.stitch import find_stitch, load_stitch
from modeldiff.lm.device import device_and_dtype
from modeldiff.lm.harvested import Harvested, harvested, side_info
from modeldiff.sides import OTHER
from modeldiff.steer.dose import COHERENT_RATIO, COHERENT_REPETITION, coherent_range, dose_figure, dose_rows
from modeldiff.steer.settings import SteerSettings
from modeldiff.steer.sweep import Push, pushes, sweep
from modeldiff.texts.readers import read_lines, read_objects
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace
from modeldiff.workspace.files import json_lines, read_json, require_free, sha256_json
from modeldiff.workspace.ranks import produce_by_first
from modeldiff.workspace.rehearsal import Size, rehearse

SCHEMA = 5
FORMAT = 3
_REHEARSED = 8
# Of a text that is written: its record, and a token of it.
_RECORD_BYTES, _TOKEN_BYTES = 512, 8


def plan(settings: SteerSettings, workspace: Workspace) -> dict[str, Any]:
    """For `--plan`: see `rehearse`. Raises as `run`."""
    pushed = {"pushes": len(pushes(settings)), "prompts": len(_prompts(settings))}
    sizes = {"max_new_tokens": Size(settings.max_new_tokens, _REHEARSED, ("steer",))}
    return {**pushed, "rehearsal": rehearse(run, settings, sizes, workspace)}


def run(settings: SteerSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Generate from every prompt, unsteered and at each strength, and measure what the push does.

    Everything that can be wrong with the request is found before a model is loaded; one model is in memory at a time.
    Raises InputError: no such feature, the model does not have it, it never fires, no model is known, no stitch, or no
    prompt.
    """
    features = workspace.find("features", settings.features)
    source = workspace.source_of(features, "crosscoder")
    side = settings.model.lower()
    crosscoder = load(source)
    direction = direction_of(crosscoder, features, settings.feature, side)
    prompts = _prompts(settings)
    infos = read_json(features.file("features.json"))["sides"]

    def target(side: str) -> Harvested:
        return harvested(side, side_info(infos[side]), features.ref, settings)

    sides = [Push(target(side), direction.unit_D)]
    if settings.both:
        other = target(OTHER[side])
        if settings.other_by == "stitch" or direction.partition != "shared":
            stitch = find_stitch(workspace, source.manifest.inputs["activations"], settings.stitch)
            there = load_stitch(stitch).from_side(side)
            moved_D = there.direction(direction.unit_D, bias=settings.stitch_bias)
            sides.append(Push(other, moved_D, stitch, settings.stitch_bias, there.r2))
        elif settings.stitch_bias:
            raise InputError("--stitch-bias is about a direction that is moved: add --other-by stitch")
        else:
            own = direction_of(crosscoder, features, settings.feature, other.side)
            sides.append(Push(other, own.unit_D))
    device, dtype, names = device_and_dtype(settings)
    if settings.features is None:
        say(f"feature {settings.feature} ({direction.partition}) of {source.ref}, as measured in {features.ref}")

    inputs = {
        "features": features.as_input(),
        "crosscoder": source.as_input(),
        "model": sides[0].target.as_input(workspace.digest_of),
        "prompts": Input(label=str(settings.prompts or "--prompt"), digest=sha256_json(list(prompts))),
    }
    for push in sides[1:]:
        inputs["other model"] = push.target.as_input(workspace.digest_of)
        if push.stitch:
            inputs["stitch"] = push.stitch.as_input()

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(names)
        texts = len(sides) * len(pushes(settings)) * len(prompts)
        needed = 2 * texts * (_RECORD_BYTES + _TOKEN_BYTES * settings.max_new_tokens)  # kept, and in the artifact
        require_free(work.folder, needed, f"a steering of {texts:,} texts")
        records: list[dict[str, Any]] = []
        chat = {}
        with progress("steer", len(sides) * len(pushes(settings)), "pushes") as bar:
            for push in sides:
                found, chat[push.model] = sweep(settings, push, prompts, device, dtype, work.resume, bar)
                records += found
        work.write_bytes("generations.jsonl", json_lines(records))
        rows = dose_rows(records)
        coherent = {push.model: coherent_range(rows, push.model) for push in sides}
        labels = {
            push.model: f"{push.model}, {f'moved by {push.stitch.ref}' if push.stitch else 'its own decoder row'} "
            f"({push.in_medians:.2g} median norms)"
            for push in sides
        }
        what = f"Feature {settings.feature} ({direction.partition}) pushed"
        title = f"{what}: {len(prompts)} prompts, seed {settings.seed}"
        write_figure(work, "figures/dose.png", lambda: dose_figure(rows, labels, title))
        steering = {
            "format": FORMAT,
            "model": settings.model,
            "feature": settings.feature,
            "partition": direction.partition,
            "max_activation": direction.max_activation,
            "sides": {
                push.model: {
                    "model_name": push.target.ref.name,
                    "revision": push.target.ref.revision,
                    "layer": push.target.layer,
                    "stitch": push.stitch.ref if push.stitch else None,
                    "stitch_bias": push.bias,
                    "stitch_r2": push.r2,
                    "unit_norm": float(push.unit_D.norm()),
                    "unit_norm_in_medians": push.in_medians,
                    "chat": chat[push.model],
                }
                for push in sides
            },
            "strengths": list(dict.fromkeys(row["strength"] for row in rows)),
            "random_directions": settings.random_directions,
            "prompts": list(prompts),
            **{name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")},
            "dose": rows,
            "coherent": coherent,
            "coherent_limits": {"perplexity_ratio": COHERENT_RATIO, "repeated_change": COHERENT_REPETITION},
        }
        work.write_json("steering.json", steering)
        return {"prompts": len(prompts), "partition": direction.partition, "coherent": coherent}

    resolved: dict[str, Any] = {"dtype": names["dtype"], "layer": sides[0].target.layer}
    if settings.temperature > 0:
        resolved["batch"] = settings.batch
    return produce_by_first(
        workspace, Order("steering", settings, inputs, SCHEMA, resolved), build, name=name, force=force
    )


def _prompts(settings: SteerSettings) -> tuple[str, ...]:
    """The prompts, from --prompt or the --prompts file: its lines (empty ones are skipped; `\\n` is not special), or
    the `prompt` or `text` of each record of a .jsonl file."""
    file = settings.prompts
    prompts: tuple[Any, ...] = settings.prompt
    if file is not None and file.suffix == ".jsonl":
        prompts = tuple(record.get("prompt", record.get("text")) for _, record in read_objects(file))
    elif file is not None:
        prompts = tuple(read_lines(file))
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise InputError(
            f"{file or '--prompt'}: a prompt is missing or empty; give the text that the model is to continue"
        )
    return tuple(dict.fromkeys(prompts))
