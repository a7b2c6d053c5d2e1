"""A model as the activations recorded it: where it is, which layer was read, and loading it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modeldiff.errors import InputError
from modeldiff.lm.load import LanguageModel, load_model
from modeldiff.lm.ref import ModelRef, model_input
from modeldiff.settings import HarvestedModels
from modeldiff.workspace import Input
from modeldiff.workspace.activations import SideInfo

_kept: dict[tuple[Any, ...], LanguageModel] | None = None


@contextmanager
def one_kept() -> Iterator[None]:
    """Inside, the model that was opened last is there at once when it is opened again, as it was then."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def _load(*how: Any) -> LanguageModel:
    if _kept is None:
        return load_model(*how)
    if how not in _kept:
        _kept.clear()
        _kept[how] = load_model(*how)
    return _kept[how]


@dataclass(frozen=True)
class Harvested:
    side: str
    ref: ModelRef
    layer: int
    """Activations are the residual stream after this block, counted from 0."""
    width: int
    """D of its residual stream."""
    median_norm: float
    """Median L2 norm of its harvested activations, raw units."""

    def as_input(self, digest_file: Callable[[Path], str]) -> Input:
        """For a fingerprint: the weights as they are now. `digest_file`: a workspace's `digest_of`."""
        return model_input(self.ref, digest_file)

    def open(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """Load it. Raises InputError when it has another width or too few blocks: it is not what was harvested."""
        lm = _load(self.ref, device, dtype)
        if lm.width != self.width:
            raise InputError(
                f"model {lm.name} has width {lm.width}, but the activations were {self.width} wide: it is not the "
                f"model that was harvested; give that with --model-path-{self.side}"
            )
        lm.check_layer(self.layer)
        return lm


def harvested(side: str, info: SideInfo, artifact: str, settings: HarvestedModels) -> Harvested:
    """The model of one side, as the activations or a features artifact (`artifact`, for messages) says; it is where the
    settings say that it is now, or where it was then. Whether its code may be run, the settings alone say. Raises
    InputError: the activations were imported without naming it or its layer."""
    path = getattr(settings, f"model_path_{side}")
    model = path or info.model
    if model is None:
        raise InputError(
            f"the activations behind {artifact} were imported without naming model {side.upper()}: say where it is "
            f"with --model-path-{side}"
        )
    if info.layer is None:
        raise InputError(
            f"the activations behind {artifact} were imported without the layer of model {side.upper()}: import them "
            f"again with --layer-{side}"
        )
    ref = ModelRef(model, None if path else info.revision, settings.trust_remote_code)
    return Harvested(side, ref, info.layer, info.width, info.median_norm)


def side_info(data: dict[str, object]) -> SideInfo:
    """The side of a features artifact's `sides` (features.json)."""
    return SideInfo(**{field.name: data[field.name] for field in dataclasses.fields(SideInfo)})  # type: ignore[arg-type]
