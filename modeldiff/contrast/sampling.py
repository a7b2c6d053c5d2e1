"""The two models, and what each says at the places: in parts, which the processes of a run share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from modeldiff.console import progress
from modeldiff.contrast.documents import Document, Place
from modeldiff.contrast.settings import ContinuationsSettings
from modeldiff.lm.batches import while_memory_lasts
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.load import load_model, quiet
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.ref import ModelRef
from modeldiff.sides import SIDES
from modeldiff.threads import by_side, shared_cores
from modeldiff.workspace import Work
from modeldiff.workspace.files import json_lines, read_json_lines
from modeldiff.workspace.ranks import Ranks

Made = TypeVar("Made")

# Places of a part. The same on every machine, for it decides the random numbers.
_PART = 256
# Places continued at once, by kind of device, or as many as its memory suffices for: on a CPU the cache decides, a GPU
# wants to be busy. It decides the random numbers, too.
_BATCH = {"cpu": 32, "cuda": 512, "mps": 128}


class Models:
    """The two models, loaded when first asked for. On a CPU both stay in memory; elsewhere only the latest one."""

    def __init__(self, refs: dict[str, ModelRef], device: torch.device, dtype: torch.dtype) -> None:
        self.refs, self.device, self.dtype = refs, device, dtype
        self.on_cpu = device.type == "cpu"
        self._loaded: dict[str, LanguageModel] = {}

    def load(self, side: str) -> LanguageModel:
        if side not in self._loaded:
            self.drop()
            self._loaded[side] = load_model(self.refs[side], self.device, self.dtype)
        return self._loaded[side]

    def drop(self) -> None:
        """Make room on a GPU; on a CPU they stay."""
        if not self.on_cpu:
            self._loaded.clear()

    def each_side(self, make: Callable[[str], Made], sides: Sequence[str] = SIDES) -> dict[str, Made]:
        """make(side) of both, or of some: at the same time on a CPU, one after the other elsewhere."""
        if not self.on_cpu or len(sides) < len(SIDES):
            return {side: make(side) for side in sides}
        for side in SIDES:
            self.load(side)
        return by_side(make)


class _Part(NamedTuple):
    """Places at which a model is sampled in one go: what an interrupted run may lose."""

    side: str
    number: int
    places: list[int]

    @property
    def name(self) -> str:
        return f"resume/said-{self.side}-{self.number:05d}.jsonl"


def _parts(documents: list[Document], places: list[Place]) -> list[_Part]:
    """All places once by each model, those with texts of like length together, so that little is padding. The longest
    come first, so that what is left at the end is short."""
    parts = []
    for side in SIDES:
        order = np.argsort([len(_prompt(documents, place, side)) for place in places], kind="stable").tolist()
        parts += [_Part(side, n, order[n * _PART : (n + 1) * _PART]) for n in range(-(-len(order) // _PART))]
    return sorted(parts, key=lambda part: (-part.number, part.side))


def sample(
    settings: ContinuationsSettings,
    work: Work,
    models: Models,
    documents: list[Document],
    places: list[Place],
    ours: Ranks,
) -> dict[str, list[Any]]:
    """By side, in the order of the places, what a model says in each draw; in the first process, of the others nothing.
    On a CPU each samples two parts at a time, whichever model they are of: the slower model does not end alone."""
    parts = _parts(documents, places)
    missing: set[str] = ours.broadcast({part.name for part in parts if not work.has(part.name)} if ours.first else None)
    at_once = len(SIDES) if models.on_cpu else 1
    mine = list(ours.mine([part for part in parts if part.name in missing]))
    if models.on_cpu:
        for part in mine:
            models.load(part.side)
    else:
        mine.sort(key=lambda part: part.side)

    def made(part: _Part) -> int:
        said = partial(
            continue_tokens,
            models.load(part.side),
            [_prompt(documents, places[i], part.side) for i in part.places for _ in range(settings.draws)],
            max_new_tokens=settings.tokens,
            temperature=1.0,
            seed=(settings.seed * 2 + SIDES.index(part.side)) * 1_000_003 + part.number,
        )
        found = while_memory_lasts(lambda size: said(batch_size=size), _BATCH.get(models.device.type, 32))
        texts = [one.text for one in found]
        rows: list[Any] = [texts[i : i + settings.draws] for i in range(0, len(texts), settings.draws)]
        work.write_bytes(part.name, json_lines(rows))
        return len(rows)

    left = sum(len(part.places) for part in mine)
    done = len(SIDES) * len(places) - sum(len(part.places) for part in parts if part.name in missing)
    # Quiet around both threads: each would otherwise put back what the other has set.
    with (
        progress("continuations", done + left, "places", done=done) as bar,
        quiet(bars=True),
        shared_cores(at_once),
        ThreadPoolExecutor(at_once, "part") as workers,
    ):
        for count in workers.map(made, mine):
            bar.advance(count)
    ours.barrier()
    return _in_order(work, parts, len(places)) if ours.first else {}


def _in_order(work: Work, parts: list[_Part], places: int) -> dict[str, list[Any]]:
    said: dict[str, dict[int, Any]] = {side: {} for side in SIDES}
    for part in parts:
        said[part.side] |= zip(part.places, read_json_lines(work.folder / part.name), strict=True)
    return {side: [of_side[i] for i in range(places)] for side, of_side in said.items()}


def _prompt(documents: list[Document], place: Place, side: str) -> list[int]:
    return documents[place.document].prompt(side, place.end)
