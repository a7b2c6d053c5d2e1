"""Both models over windows of the harvested texts: what the measures that run the models themselves have in common.

A window is a text as both models read it, with the rows of its pairs. A harvest never splits one over two shards, so a
document of a shard's plan is a whole window.

Legend: T tokens of a window, R pairs of a window, B windows of a batch, P predictions of a batch (a token that has a
next one), D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.console import say
from modeldiff.crosscoder.settings import outlier_factor_of
from modeldiff.errors import InputError, MachineError
from modeldiff.features.codes import Encoder
from modeldiff.features.inputs import open_measured
from modeldiff.features.measures.measure import OnModels
from modeldiff.lm.batches import batches, chunks, padded
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import residual_after, verify_hook
from modeldiff.sides import SIDES
from modeldiff.splits import evenly_spread, spread_blocks
from modeldiff.workspace import Input, Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.plan import ShardPlan

# A plan file is read whole: with more shards than this only some are read, if they hold enough pairs.
_MOST_SHARDS = 64
# The model is compared with the store on this many windows before it is measured.
_CHECKED_WINDOWS = 8
# Measured on the bundled pair: 0.002 for activations stored in bfloat16, 0.007 when the model too runs in bfloat16 in
# place of float32. Another model or layer differs by about the whole spread.
_MOST_GAP = 0.1


@dataclass(frozen=True)
class Window:
    """One text of the store. Its pairs are consecutive rows."""

    rows: Block
    """Where the activations of its R pairs are."""
    ids: dict[str, NDArray[np.int64]]
    """By side: token ids (T,), special tokens included."""
    token: dict[str, NDArray[np.int64]]
    """By side: which tokens the pairs are at, (R,)."""


def spread_texts(store: ActivationStore, pairs: int, least_rows: int = 1) -> Iterator[tuple[ShardPlan, list[Block]]]:
    """(plan of a shard, blocks of its rows), shard by shard: whole texts that hold about `pairs` pairs together, spread
    evenly over the store. A block is one text, or neighbouring ones that have at least so many rows together. Raises
    InputError: the activations were imported without texts."""
    sizes = store.info.shards
    enough = math.ceil(pairs * len(sizes) / sum(sizes))
    shards = evenly_spread(len(sizes), max(_MOST_SHARDS, enough))
    share = min(1.0, pairs / sum(sizes[shard] for shard in shards))
    for shard in shards:
        plan = store.plan(shard)
        borders = np.searchsorted(plan.pairs.document, np.arange(len(plan.documents) + 1)).tolist()
        blocks, start = [], 0
        for stop in borders[1:]:
            if stop - start >= least_rows or stop == borders[-1] > start:
                blocks.append(Block(shard, start, stop))
                start = stop
        yield plan, spread_blocks(blocks, max(1, round(share * len(plan.pairs))))


def sample_windows(store: ActivationStore, pairs: int) -> list[Window]:
    """The texts of `spread_texts`. Raises InputError: there are none, or they were imported without token ids."""
    return [_window(store, plan, block) for plan, blocks in spread_texts(store, pairs) for block in blocks]


def _window(store: ActivationStore, plan: ShardPlan, rows: Block) -> Window:
    document = plan.documents[plan.pairs.document[rows.start]]
    # Copies: a view would keep the whole plan in memory.
    ids = {side: document.tokens[side].ids.astype(np.int64) for side in SIDES}
    token = {side: plan.pairs.token[side][rows.start : rows.stop].astype(np.int64) for side in SIDES}
    if any((ids[side] < 0).any() for side in SIDES):
        raise InputError(
            f"{store.artifact.ref} was imported without token ids: this needs them; give ids_a and ids_b in the "
            "file of --import-texts, or harvest the activations with modeldiff"
        )
    return Window(rows, ids, token)


def next_token_losses(
    logits_BTV: torch.Tensor, clean_BTV: torch.Tensor, at_P: tuple[torch.Tensor, torch.Tensor], next_P: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(cross-entropy (P,), KL(clean || these) (P,)) in nats; `at_P`: sequence and token of each prediction, `next_P`:
    the token that follows."""
    loss_P, kl_P = np.empty(len(next_P)), np.empty(len(next_P))
    for part in chunks(len(next_P), logits_BTV.shape[-1]):
        place = (at_P[0][part], at_P[1][part])
        log_PV = logits_BTV[place].float().log_softmax(dim=-1)
        clean_PV = clean_BTV[place].float().log_softmax(dim=-1)
        loss_P[part] = -log_PV.gather(1, next_P[part, None])[:, 0].cpu().numpy()
        kl_P[part] = (clean_PV.exp() * (clean_PV - log_PV)).sum(dim=-1).cpu().numpy()
    return loss_P, kl_P


@dataclass(frozen=True)
class LoadedModel:
    """One of the two models, in memory, and the windows that it reads."""

    side: str
    lm: LanguageModel
    layer: int
    windows: Sequence[Window]
    gap: float = 0.0
    """How far its activations are from the stored ones: root mean square, in units of their spread."""

    @property
    def first_row(self) -> NDArray[np.int64]:
        """Where each window's pairs begin among those of all; at last their number."""
        return np.cumsum([0, *(len(window.rows) for window in self.windows)])

    def padded(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids_BT, mask_BT) of these windows, padded on the right."""
        return padded([torch.from_numpy(self.windows[i].ids[self.side]) for i in numbers])

    def batches(self, numbers: Sequence[int], budget: int) -> list[list[int]]:
        """These windows, by length, in batches of so many padded tokens."""
        found = batches([len(self.windows[i].ids[self.side]) for i in numbers], budget)
        return [[numbers[i] for i in batch] for batch in found]

    @contextmanager
    def memory_for(self, batch: Sequence[int]) -> Iterator[None]:
        """Raises MachineError where a batch does not fit into memory."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise MachineError(
                f"a batch of {len(batch)} windows does not fit into the memory of {self.lm.device} with model "
                f"{self.side.upper()} ({self.lm.name}): use a smaller --batch-tokens, or --dtype bfloat16"
            ) from None


@dataclass(frozen=True)
class Models:
    """A crosscoder, windows of text, and both models, which are found and checked but not loaded."""

    encoder: Encoder
    windows: list[Window]
    targets: dict[str, Harvested]
    """By side."""
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
        targets = measured.models(settings)
        windows = sample_windows(measured.store, settings.pairs)
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        models = {f"model_{side}": target.as_input(workspace.digest_of) for side, target in targets.items()}
        factor = {"outlier_factor": outlier_factor_of(measured.source, settings.outlier_factor)}
        return cls(
            encoder=Encoder(measured.crosscoder, measured.store, device, factor["outlier_factor"]),
            windows=windows,
            targets=targets,
            dtype=dtype,
            inputs=measured.inputs | models,
            named={"crosscoder": measured.source.ref, "activations": measured.activations.ref, **factor},
            resolved={**factor, "dtype": str(dtype).removeprefix("torch.")},
        )

    @cached_property
    def inliers(self) -> tuple[dict[str, torch.Tensor], int]:
        """(mean activation (D,) by side, float64; number) of the pairs that are no outliers."""
        store, count = self.encoder.store, 0
        total = {side: torch.zeros(info.width, dtype=torch.float64) for side, info in store.info.sides.items()}
        for window in self.windows:
            x = store.read(window.rows)
            kept_R = self.encoder.keeps(*x)
            count += int(kept_R.sum())
            for side, x_RD in zip(SIDES, x, strict=True):
                total[side] += x_RD[kept_R].double().sum(dim=0)
        return {side: sum_D / max(1, count) for side, sum_D in total.items()}, count

    def open(self, side: str) -> LoadedModel:
        """One model. Raises InputError: its activations differ from the stored ones by more than rounding, so it is not
        the one that was harvested; or it lacks a token."""
        target, store = self.targets[side], self.encoder.store
        say(f"model {side.upper()}: {target.ref.short_name}, after block {target.layer}, on {self.encoder.device}")
        lm = target.open(self.encoder.device, self.dtype)
        verify_hook(lm, target.layer)
        mean_D = self.inliers[0][side]
        largest = max(int(window.ids[side].max()) for window in self.windows)
        if largest >= lm.vocabulary:
            raise InputError(
                f"{store.artifact.ref} has token {largest} on side {side.upper()}, but model {lm.name} has only "
                f"{lm.vocabulary} tokens: give the harvested model with --model-path-{side}"
            )
        squares = spread = norms = 0.0
        step = max(1, len(self.windows) // _CHECKED_WINDOWS)
        for window in self.windows[::step]:
            ids_1T = torch.from_numpy(window.ids[side])[None]
            live_TD = residual_after(lm, target.layer, ids_1T, torch.ones_like(ids_1T))[0]
            kept_R = self.encoder.keeps(*store.read(window.rows))
            stored_RD = store.read_side(side, window.rows)[kept_R].double()
            live_RD = live_TD.cpu()[torch.from_numpy(window.token[side])].double()[kept_R]
            squares += float((live_RD - stored_RD).square().sum())
            spread += float((stored_RD - mean_D).square().sum())
            norms += float(stored_RD.square().sum())
        # A stream that hardly varies may still be rounded: half a step of bfloat16 (2^-9) of its norm.
        gap = float(np.sqrt(squares / max(spread, 2**-9 * norms, torch.finfo(torch.float64).tiny)))
        if not gap <= _MOST_GAP:
            raise InputError(
                f"model {side.upper()} ({lm.name}) gives other activations after block {target.layer} than "
                f"{store.artifact.ref} holds (they differ by {gap:.2g} of their spread): "
                f"give the harvested one with --model-path-{side}, in the harvest's --dtype"
            )
        return LoadedModel(side, lm, target.layer, self.windows, gap)
