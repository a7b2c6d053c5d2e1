"""One model under every strength and direction: what it writes, and the figures of each text. Can be interrupted.

Legend: S vectors (0 first: unsteered), D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from modeldiff.console import Progress
from modeldiff.controls import random_directions
from modeldiff.errors import MachineError
from modeldiff.lm.chat import uses_chat
from modeldiff.lm.generate import Generated, generate_tokens
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.dose import FEATURE, RANDOM
from modeldiff.steer.effect import divergence, repeated_share, surprisal
from modeldiff.steer.prompts import Prompt, put
from modeldiff.steer.settings import Steering, SteerSettings
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json
from modeldiff.workspace.kept import is_sound, keep_json

UNSTEERED = 0.0


@dataclass(frozen=True)
class Push:
    """One model and what strength 1 adds to it."""

    target: Harvested
    unit_D: torch.Tensor
    """In the model's own units, float32."""
    stitch: Artifact | None = None
    """What moved the direction from the other model; None: it is the feature's decoder row in this model."""
    bias: bool = False
    """Whether the map's constant was added (eq. 18)."""
    r2: float | None = None
    """Held-out R² of the map over all activations."""

    @property
    def model(self) -> str:
        """A or B."""
        return self.target.side.upper()

    @property
    def in_medians(self) -> float:
        """Norm of what strength 1 adds, in units of the median norm of the model's activations."""
        return float(self.unit_D.norm()) / self.target.median_norm


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

    The pushes that fill a batch are written to `resume` when they are done. The model is loaded if some are missing,
    and is gone when this returns. Raises MachineError: a batch does not fit into memory; InputError: this is not the
    model that was harvested, or a prompt is too long for it.
    """
    wanted = pushes(settings)
    step = 1 if settings.temperature > 0 else max(1, settings.batch // len(prompts))
    paths = {start: resume / f"{push.target.side}-{start:04d}-of-{step}.json" for start in range(0, len(wanted), step)}
    missing = [start for start, path in paths.items() if not is_sound(path)]
    bar.advance(len(wanted) - sum(len(wanted[start : start + step]) for start in missing))

    def write_missing() -> None:
        lm = push.target.open(device, dtype)
        chat = uses_chat(lm.tokenizer, settings.chat)
        random_ND = random_directions(settings.random_directions, push.unit_D, settings.seed)
        units = {FEATURE: push.unit_D} | {f"{RANDOM} {i}": unit_D for i, unit_D in enumerate(random_ND, 1)}
        vectors_SD = torch.stack([strength * units[direction] for direction, strength in wanted])
        for start in missing:
            plain = read_json(paths[0])["texts"][0] if start else None
            try:
                part_SD = vectors_SD[start : start + step]
                found = _measured(settings, lm, push.target.layer, prompts, part_SD, plain)
            except torch.OutOfMemoryError:
                raise MachineError(
                    f"{settings.batch} texts at a time do not fit into the memory of {device} with model {push.model} "
                    f"({lm.name}): use a smaller --batch, or --dtype bfloat16"
                ) from None
            keep_json(paths[start], {"chat": chat, "texts": found})
            bar.advance(len(found))

    if missing:
        write_missing()
    written = [read_json(path) for path in paths.values()]
    records = []
    for (direction, strength), texts in zip(wanted, (texts for one in written for texts in one["texts"]), strict=True):
        for prompt, one in zip(prompts, texts, strict=True):
            figures = {name: value for name, value in one.items() if name not in ("prompt_ids", "new_ids")}
            chosen = {"model": push.model, "direction": direction, "strength": strength, "prompt": prompt}
            records.append(chosen | figures)
    return records, bool(written[0]["chat"])


def _measured(
    settings: SteerSettings,
    lm: LanguageModel,
    layer: int,
    prompts: Sequence[str],
    vectors_SD: torch.Tensor,
    plain: list[dict[str, Any]] | None,
) -> list[list[dict[str, Any]]]:
    """By vector and prompt, the text and its figures.

    plain: those of the unsteered texts; None: the first vector is 0, so they are the first here.
    """
    written = write(settings, lm, layer, prompts, vectors_SD, settings.batch)
    unsteered = written[0] if plain is None else [Generated(one["prompt_ids"], one["new_ids"], "") for one in plain]
    nats = iter(surprisal(lm, [one for texts in written for one in texts]))
    return [
        [
            {
                "prompt_ids": one.prompt_ids,
                "new_ids": one.new_ids,
                "text": one.text,
                "tokens": len(one.new_ids),
                "nats_per_token": _finite_mean(next(nats)),
                "repeated": repeated_share(one.text),
                "kl": _finite_mean(kl),
                "kl_tokens": len(kl),
            }
            for one, kl in zip(texts, of_vector, strict=True)
        ]
        for texts, of_vector in zip(written, divergence(lm, layer, unsteered, vectors_SD), strict=True)
    ]


def _finite_mean(values: list[float]) -> float | None:
    """None where a number format overflowed."""
    mean = fmean(values)
    return mean if math.isfinite(mean) else None


def write(
    settings: Steering, lm: LanguageModel, layer: int, prompts: Sequence[str], vectors_SD: torch.Tensor, batch: int
) -> list[list[Generated]]:
    """The continuations, by vector and prompt, `batch` texts at a time.

    Each vector is added to the residual stream after block `layer` at every position. Greedily, several vectors share a
    batch. When drawing, each has its own with the same random numbers, so that the texts of a prompt differ by the push
    alone.
    """
    texts, options = put(settings, lm, [Prompt(one) for one in prompts])
    if settings.temperature > 0:
        made = []
        for vector_D in vectors_SD:
            with add_to_residual(lm, layer, vector_D):
                made.append(generate_tokens(lm, texts, batch_size=batch, **options))
        return made
    rows = [(vector, text) for vector in range(len(vectors_SD)) for text in texts]
    flat: list[Generated] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        with add_to_residual(lm, layer, vectors_SD[[vector for vector, _ in part]]):
            flat += generate_tokens(lm, [text for _, text in part], batch_size=len(part), **options)
    return [flat[i : i + len(texts)] for i in range(0, len(flat), len(texts))]
