"""One model under every strength and direction: what it writes, and the figures of each text. Can be interrupted.

Legend: S vectors (0 first: unsteered), D width.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from modeldiff.console import Progress
from modeldiff.controls import random_directions
from modeldiff.errors import MachineError
from modeldiff.lm.chat import open_chat, uses_chat
from modeldiff.lm.generate import Generated
from modeldiff.lm.model import LanguageModel
from modeldiff.steer.effect import divergence, surprisal
from modeldiff.steer.push import Push
from modeldiff.steer.repetition import repeated_share
from modeldiff.steer.settings import SteerSettings
from modeldiff.steer.summary import FEATURE, RANDOM, record
from modeldiff.steer.writing import write
from modeldiff.workspace.files import read_json, write_json

UNSTEERED = 0.0


def pushes(settings: SteerSettings) -> list[tuple[str, float]]:
    """(direction, strength) of every push, the unsteered one first, then the feature's, then the random ones'."""
    strengths = list(dict.fromkeys(strength for strength in settings.strength if strength != UNSTEERED))
    directions = [FEATURE, *(f"{RANDOM} {number}" for number in range(1, settings.random_directions + 1))]
    return [(FEATURE, UNSTEERED), *((direction, strength) for direction in directions for strength in strengths)]


def sweep(
    settings: SteerSettings,
    push: Push,
    prompts: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    resume: Path,
    bar: Progress,
) -> tuple[list[dict[str, Any]], bool]:
    """(the records of all generations of one model, whether the prompts were put in its chat format).

    A chunk of pushes, those that fill a batch, is written to `resume` when it is done. The model is loaded if one is
    missing, and is gone when this returns.

    Raises:
        MachineError: a batch does not fit into memory.
        InputError: this is not the model that was harvested, or a prompt is too long for it.
    """
    wanted = pushes(settings)
    step = 1 if settings.temperature > 0 else max(1, settings.batch // len(prompts))
    chunks = [
        (resume / f"{push.target.side}-{start:04d}-of-{step}.json", start) for start in range(0, len(wanted), step)
    ]
    chat_path = resume / f"{push.target.side}-chat.json"
    missing = [(path, start) for path, start in chunks if not path.exists()]
    bar.advance(len(wanted) - sum(len(wanted[start : start + step]) for _, start in missing))

    def write_missing() -> None:
        lm = push.target.open(device, dtype)
        chat = uses_chat(lm.tokenizer, settings.chat)
        write_json(chat_path, {"chat": chat})
        rendered = [open_chat(lm.tokenizer, prompt) if chat else prompt for prompt in prompts]
        vectors_SD = _vectors(settings, push, wanted)
        for path, start in missing:
            part = slice(start, start + step)
            plain = None if start == 0 else _read(chunks[0][0])[0]
            try:
                found = _measure(settings, lm, push.target.layer, rendered, vectors_SD[part], plain, chat)
            except torch.OutOfMemoryError:
                raise MachineError(
                    f"{settings.batch} texts at a time do not fit into the memory of {device} with model {push.model} "
                    f"({lm.name}): use a smaller --batch, or --dtype bfloat16"
                ) from None
            write_json(path, {"texts": found})
            bar.advance(len(found))

    if missing:
        write_missing()
    measured = [texts for path, _ in chunks for texts in _read(path)]
    records = [
        record(push.model, direction, strength, prompt, one, plain)
        for (direction, strength), texts in zip(wanted, measured, strict=True)
        for prompt, one, plain in zip(prompts, texts, measured[0], strict=True)
    ]
    return records, bool(read_json(chat_path)["chat"])


def _read(path: Path) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = read_json(path)["texts"]
    return found


def _vectors(settings: SteerSettings, push: Push, wanted: list[tuple[str, float]]) -> torch.Tensor:
    """(S, D) what each push adds."""
    random_ND = random_directions(settings.random_directions, push.unit_D, settings.seed)
    units = {FEATURE: push.unit_D} | {f"{RANDOM} {i}": unit_D for i, unit_D in enumerate(random_ND, 1)}
    return torch.stack([strength * units[direction] for direction, strength in wanted])


def _measure(
    settings: SteerSettings,
    lm: LanguageModel,
    layer: int,
    rendered: list[str],
    vectors_SD: torch.Tensor,
    plain: list[dict[str, Any]] | None,
    chat: bool,
) -> list[list[dict[str, Any]]]:
    """By vector and prompt, the text and its figures.

    Args:
        plain: those of the unsteered texts; None: the first vector is 0, so they are the first here.
    """
    written = write(
        lm,
        layer,
        rendered,
        vectors_SD,
        batch=settings.batch,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        top_p=settings.top_p,
        seed=settings.seed,
        add_special_tokens=not chat,
    )
    unsteered = written[0] if plain is None else [Generated(one["prompt_ids"], one["new_ids"], "") for one in plain]
    nats = iter(surprisal(lm, [one for texts in written for one in texts]))
    return [
        [_figures(one, next(nats), kl) for one, kl in zip(texts, of_vector, strict=True)]
        for texts, of_vector in zip(written, divergence(lm, layer, unsteered, vectors_SD), strict=True)
    ]


def _figures(one: Generated, nats: list[float], kl: list[float]) -> dict[str, Any]:
    return {
        "prompt_ids": one.prompt_ids,
        "new_ids": one.new_ids,
        "text": one.text,
        "tokens": len(one.new_ids),
        "nats": _finite(fmean(nats)),
        "repeated": repeated_share(one.text),
        "kl_first": _finite(kl[0]),
        "kl": _finite(fmean(kl)),
        "kl_tokens": len(kl),
    }


def _finite(value: float) -> float | None:
    """None for what a number format overflowed in."""
    return value if math.isfinite(value) else None
