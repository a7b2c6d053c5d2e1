"""Batches for a model: which sequences go together, how many tokens at a time, and padding.

Shapes: B sequences of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from modeldiff.lm.model import LanguageModel

Made = TypeVar("Made")

# Padded tokens per batch, by kind of device: on a CPU the cache decides (measured best for small models), on a GPU
# large batches keep it busy.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
# Logits turned into probabilities at once: 256 MiB in float32.
CHUNK_VALUES = 1 << 26


def token_budget(
    lm: LanguageModel, *, logit_values: int | None = None, by_device: Mapping[str, int] = BATCH_TOKENS
) -> int:
    """How many padded tokens a batch of a model may have: those of its kind of device, and no more than make so many
    logits (None: none are made)."""
    tokens = by_device.get(lm.device.type, by_device["cpu"])
    return tokens if logit_values is None else min(tokens, logit_values // lm.vocabulary)


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of the sequences, by length, in batches of at most `budget` tokens with padding, or of one sequence."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not found or (len(found[-1]) + 1) * lengths[i] > budget:
            found.append([])
        found[-1].append(i)
    return found


def padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(ids_BT, padded on the right with 0; mask_BT, int64: 1 at tokens) of sequences of token ids (T,)."""
    mask = [torch.ones(len(one), dtype=torch.int64) for one in sequences]
    ids_BT, mask_BT = (torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True) for rows in (sequences, mask))
    return ids_BT, mask_BT


def while_memory_lasts(make: Callable[[int], Made], most: int) -> Made:
    """`make(most)`, of so many at once; with half of that, and half again, where a GPU's memory does not suffice.
    Raises torch.OutOfMemoryError: not for one, either."""
    while True:
        try:
            return make(most)
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        # Only here: the error holds what was computed so far.
        torch.cuda.empty_cache()
        most //= 2


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices of the positions whose logits are turned into probabilities at once."""
    step = max(1, CHUNK_VALUES // vocabulary)
    return (slice(start, start + step) for start in range(0, positions, step))
