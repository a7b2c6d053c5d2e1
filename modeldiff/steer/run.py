"""The steer stage: features and a model in, a `steering` artifact out.

Layout (normative):
    steering.json       what was steered: model, layer, feature, vector norms, sampling, prompts
    generations.jsonl   one object per line: prompt, strength (0: unsteered), text; by strength, then by prompt
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import torch

from modeldiff.console import progress, say
from modeldiff.crosscoder import load
from modeldiff.crosscoder.direction import Direction, direction_of
from modeldiff.errors import InputError
from modeldiff.lm.chat import open_chat
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.generate import generate
from modeldiff.lm.harvested import Harvested, harvested, side_info
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.settings import SteerSettings
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json, sha256_json, write_json

SCHEMA = 1
FORMAT = 1
STEERING_NAME = "steering.json"
GENERATIONS_NAME = "generations.jsonl"
UNSTEERED = 0.0


def run(settings: SteerSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Generate from every prompt, unsteered and at each strength.

    Everything that can be wrong with the request is found before a model is loaded.

    Raises:
        InputError: no such feature, the model does not have it, it never fires, no model is known, or no prompt.
    """
    features = find_features(workspace, settings)
    source = workspace.source_of(features, "crosscoder")
    side = settings.model.lower()
    direction = direction_of(load(source), features, settings.feature, side)
    prompts = read_prompts(settings)
    target = _target(settings, features, side)
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

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        return _build(settings, target, direction, prompts, device, dtype, work)

    resolved = {"dtype": str(dtype).removeprefix("torch."), "layer": target.layer}
    return produce(workspace, Order("steering", settings, inputs, SCHEMA, resolved), build, name=name, force=force)


def find_features(workspace: Workspace, settings: SteerSettings) -> Artifact:
    """The features artifact that a feature's number refers to.

    Raises:
        InputError: there is none, or the one named was made from another crosscoder than the one named.
    """
    if settings.crosscoder is None:
        return workspace.find("features", settings.features)
    source = workspace.find("crosscoder", settings.crosscoder)
    if settings.features is not None:
        features = workspace.find("features", settings.features)
        if features.manifest.inputs["crosscoder"].digest != source.manifest.digest:
            made_from = features.manifest.inputs["crosscoder"].label
            raise InputError(f"{features.ref} was made from {made_from}, not from {source.ref}: leave out one of them")
        return features
    for features in reversed(workspace.artifacts("features")):
        if features.manifest.inputs["crosscoder"].digest == source.manifest.digest:
            return features
    raise InputError(f"no features of {source.ref} yet: run `modeldiff features --crosscoder {source.ref}` first")


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


def _target(settings: SteerSettings, features: Artifact, side: str) -> Harvested:
    info = read_json(features.file("features.json"))["sides"][side]
    return harvested(side, side_info(info), features.ref, settings.model_path, "--model-path")


def _build(
    settings: SteerSettings,
    target: Harvested,
    direction: Direction,
    prompts: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    work: Work,
) -> dict[str, Any]:
    lm = target.open(device, dtype)
    chat = settings.chat == "yes" or (settings.chat == "auto" and bool(lm.tokenizer.chat_template))
    rendered = [open_chat(lm.tokenizer, prompt) if chat else prompt for prompt in prompts]
    strengths = (UNSTEERED, *dict.fromkeys(s for s in settings.strength if s != UNSTEERED))
    records: list[dict[str, Any]] = []
    with progress("steer", len(strengths), "strengths") as bar:
        for number, strength in enumerate(strengths):
            path = work.resume / f"strength-{number:03d}.json"
            if not path.exists():
                write_json(path, {"texts": _generate(settings, lm, target, direction, strength, rendered, chat)})
            texts = read_json(path)["texts"]
            records += [
                {"prompt": prompt, "strength": strength, "text": text}
                for prompt, text in zip(prompts, texts, strict=True)
            ]
            bar.advance(1)
    # ASCII: no line separator of Unicode can break a line of the file.
    lines = "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records)
    work.write_bytes(GENERATIONS_NAME, lines.encode())
    work.write_json(STEERING_NAME, _description(settings, target, direction, prompts, strengths, chat))
    return {"prompts": len(prompts), "strengths": list(strengths), "partition": direction.partition}


def _generate(
    settings: SteerSettings,
    lm: LanguageModel,
    target: Harvested,
    direction: Direction,
    strength: float,
    rendered: list[str],
    chat: bool,
) -> list[str]:
    steered = add_to_residual(lm, target.layer, direction.at(strength)) if strength != UNSTEERED else nullcontext()
    with steered:
        return generate(
            lm,
            rendered,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            add_special_tokens=not chat,
        )


def _description(
    settings: SteerSettings,
    target: Harvested,
    direction: Direction,
    prompts: tuple[str, ...],
    strengths: tuple[float, ...],
    chat: bool,
) -> dict[str, Any]:
    norm = float(direction.unit_D.norm())
    return {
        "format": FORMAT,
        "model": settings.model,
        "model_name": target.ref.name,
        "revision": target.ref.revision,
        "layer": target.layer,
        "feature": settings.feature,
        "partition": direction.partition,
        "max_activation": direction.max_activation,
        "unit_norm": norm,
        "unit_norm_in_medians": norm / target.median_norm,
        "strengths": list(strengths),
        "prompts": list(prompts),
        "chat": chat,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
    }
