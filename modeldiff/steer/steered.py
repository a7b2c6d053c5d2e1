"""Steering a model that the user has loaded, without a stage: for notebooks and scripts.

Legend: D width of the model's residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from modeldiff.catalogue.direction import Direction, direction_of
from modeldiff.crosscoder import load
from modeldiff.errors import InputError
from modeldiff.lm.model import Decoder
from modeldiff.lm.residual import add_to_residual
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace
from modeldiff.workspace.files import read_json


def direction(workspace: Workspace, feature: int, side: str, *, features: str | None = None) -> Direction:
    """What a strength of 1 adds to model `side`, "A" or "B": the feature's decoder row at its maximum activation, in
    the model's own units, with the block behind which it belongs.

    features: the features artifact (`features:1`), whose crosscoder is used; None: the latest.
    Raises InputError: there is no such artifact or feature, that model does not have it, or it never fires.
    """
    if side.lower() not in SIDES:
        raise InputError(f"a direction is of model A or B, found {side!r}")
    artifact = workspace.find("features", features)
    found = direction_of(load(workspace.source_of(artifact, "crosscoder")), artifact, feature, side.lower())
    return replace(found, layer=read_json(artifact.file("features.json"))["sides"][side.lower()]["layer"])


@contextmanager
def steered(
    model: Any, direction: Direction | torch.Tensor, layer: int | None = None, strength: float = 1.0
) -> Iterator[None]:
    """While the context is open, `strength` times `direction` is added to the residual stream after block `layer` at
    every token, read or written. Contexts may be nested. What is added goes away when it closes, also on an error.

        with modeldiff.steered(model, modeldiff.direction(workspace, 17, "A"), strength=2.0):
            model.generate(...)

    Args:
        model: a causal language model of transformers in evaluation mode, as from_pretrained gives it, on any device;
            nothing of it is changed. Its blocks are found in a pass over five tokens. A compiled model runs as if it
            were not.
        direction: of a feature, or a tensor (D,) of any float dtype and device, in the model's own units.
        layer: counted from 0; None: the direction's own.

    Raises InputError: this is no such model, the vector does not fit it or is not finite, or there is no such layer.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        what = "a loaded model of transformers (AutoModelForCausalLM.from_pretrained)"
        raise InputError(f"expected {what}, found {type(model).__name__}")
    if isinstance(direction, Direction):
        layer, direction = (direction.layer if layer is None else layer), direction.unit_D
    if layer is None:
        raise InputError("say behind which block the direction is added: layer=N, counted from 0")
    vector_D = strength * torch.as_tensor(direction, dtype=torch.float32)
    if vector_D.ndim != 1:
        raise InputError(f"expected one direction, a tensor of one dimension, found the shape {tuple(vector_D.shape)}")
    pushed = add_to_residual(Decoder(model, type(model).__name__), layer, vector_D)
    # What was compiled before would not see the hook, and what is compiled now would keep it.
    with torch.compiler.set_stance("force_eager"), pushed:
        yield
