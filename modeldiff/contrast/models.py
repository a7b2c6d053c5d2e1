"""The two models that continue texts, loaded when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from modeldiff.lm.load import load_model
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.ref import ModelRef
from modeldiff.sides import SIDES
from modeldiff.threads import by_side

Made = TypeVar("Made")


class Models:
    """Both of them. On a CPU both stay in memory; elsewhere only the latest one."""

    def __init__(self, refs: dict[str, ModelRef], device: torch.device, dtype: torch.dtype) -> None:
        self.refs, self.device, self.dtype = refs, device, dtype
        self._loaded: dict[str, LanguageModel] = {}

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def load(self, side: str) -> LanguageModel:
        """The model of a side."""
        if side not in self._loaded:
            if not self.on_cpu:
                self._loaded.clear()
            self._loaded[side] = load_model(self.refs[side], self.device, self.dtype)
        return self._loaded[side]

    def each_side(self, make: Callable[[str], Made]) -> dict[str, Made]:
        """make("a") and make("b"): at the same time on a CPU, one after the other elsewhere."""
        if not self.on_cpu:
            return {side: make(side) for side in SIDES}
        for side in SIDES:
            self.load(side)
        return by_side(make)
