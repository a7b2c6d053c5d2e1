"""Both models over windows of the harvested texts: how the measures that run the models themselves begin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from modeldiff.console import say
from modeldiff.features.codes import Encoder
from modeldiff.features.inputs import open_measured, outlier_factor_of
from modeldiff.features.measures.measure import OnModels
from modeldiff.features.splice import inlier_means, stored_gap
from modeldiff.features.windows import Window, sample_windows
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import verify_hook
from modeldiff.workspace import Input, Workspace


@dataclass(frozen=True)
class Models:
    """A crosscoder, windows of text, and both models, which are found and checked but not loaded."""

    encoder: Encoder
    windows: list[Window]
    targets: dict[str, Harvested]
    """By side."""
    device: torch.device
    dtype: torch.dtype
    inputs: dict[str, Input]
    named: dict[str, Any]
    """For the description of the artifact: refs of the crosscoder and the activations, and the outlier factor."""
    resolved: dict[str, Any]
    """What defaults have become, where it changes the result."""

    @classmethod
    def find(cls, settings: OnModels, workspace: Workspace, what: str) -> Models:
        """Find everything; `what` is made, for a message.

        Raises:
            InputError: there is no such crosscoder, its activations are gone or have no texts, or a model is not known.
            DamagedError: a file of the inputs is damaged.
        """
        measured = open_measured(workspace, settings.crosscoder, settings.activations, what=what)
        targets = measured.models(settings.model_path_a, settings.model_path_b)
        windows = sample_windows(measured.store, settings.pairs)
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        factor = {"outlier_factor": outlier_factor_of(measured.source, settings.outlier_factor)}
        return cls(
            encoder=Encoder(measured.crosscoder, measured.store, device, factor["outlier_factor"]),
            windows=windows,
            targets=targets,
            device=device,
            dtype=dtype,
            inputs=measured.inputs | {f"model_{side}": target.as_input() for side, target in targets.items()},
            named={"crosscoder": measured.source.ref, "activations": measured.activations.ref, **factor},
            resolved={**factor, "dtype": str(dtype).removeprefix("torch.")},
        )

    @cached_property
    def inliers(self) -> tuple[dict[str, torch.Tensor], int]:
        """(mean activation (D,) by side, number) of the pairs that are no outliers."""
        return inlier_means(self.encoder, self.windows)

    def open(self, side: str) -> tuple[LanguageModel, float]:
        """(one model, loaded; how far its activations are from the stored ones, see `stored_gap`).

        Raises:
            InputError: it is not the model that was harvested.
        """
        target = self.targets[side]
        say(f"model {side.upper()}: {target.ref.short_name}, after block {target.layer}, on {self.device}")
        lm = target.open(self.device, self.dtype)
        verify_hook(lm, target.layer)
        mean_D = self.inliers[0][side]
        return lm, stored_gap(lm, target.layer, side, self.encoder, self.windows, mean_D)
