"""Small crosscoders with random weights, biases included, and trainers of small ones."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.crosscoder.audits.auditor import Auditor
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.workspace import Artifact
from tests.crosscoder.dense import DenseStep
from tests.crosscoder.planted import plant

BATCH = 64
DSF: dict[str, Any] = {"n_a_only": 0, "n_shared": 10, "n_b_only": 0, "n_designated": 4, "tie": "norms"}
"""Fields of the config of a crosscoder with designated features."""


def random_crosscoder(**config: Any) -> Crosscoder:
    """A crosscoder whose every weight and bias is random: 2 features of A, 5 shared, 3 of B, and widths 6 and 9, unless
    these or other fields of the config are given."""
    values = {"width_a": 6, "width_b": 9, "n_a_only": 2, "n_shared": 5, "n_b_only": 3, "k": 3}
    crosscoder = Crosscoder(CrosscoderConfig(**{**values, **config}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return crosscoder


def centred(width_a: int, width_b: int) -> dict[str, Measured]:
    """Statistics of activations with mean 0 that scale as planted ones need: A by 1/3, B by 5."""
    norm = math.sqrt((width_a + width_b) / 2)
    return {"a": Measured(torch.zeros(width_a), 3 * norm), "b": Measured(torch.zeros(width_b), norm / 5)}


def make_trainer(
    *,
    widths: tuple[int, int] = (16, 20),
    crosscoder: Crosscoder | None = None,
    dense: bool = False,
    recipe: dict[str, Any] | None = None,
    **values: Any,
) -> Trainer:
    """A trainer that logs every step, of a fresh crosscoder if none is given; `recipe` are fields of its recipe, the
    others are settings."""
    settings = TrainSettings(**{"features": 40, "exclusive": 0.1, "k": 2, "batch": BATCH, **values})
    made = dataclasses.replace(make_recipe(settings, widths=widths, pairs=10**5), **{"log_every": 1, **(recipe or {})})
    if crosscoder is None:
        measured = centred(*widths)
        crosscoder = Crosscoder.initialised(initial_config(settings, made, measured), measured, seed=0)
    callback = Auditor() if made.audit_steps else None
    return Trainer(crosscoder, made, sparse=DenseStep(crosscoder) if dense else None, callback=callback)


def planted_batches(
    count: int, rows: int = BATCH, widths: tuple[int, int] = (16, 20)
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Raw activations."""
    return plant(count * rows, widths=widths, offset=0).batches(rows)


def log_of(artifact: Artifact) -> list[dict[str, Any]]:
    """The lines of training.jsonl."""
    return [json.loads(line) for line in (artifact.folder / "training.jsonl").read_text().splitlines()]
