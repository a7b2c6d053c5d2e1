"""A model's next-token losses with its activations replaced at the places of pairs, window by window.

The crosscoder reads pairs, so only the tokens at which a pair was taken can be replaced, and of those not the outliers
that training left out; everything else in the residual stream stays the model's own.

Legend: B windows of a batch, T tokens, R replaced tokens of a batch, P predictions of a batch (a token that has a next
one), W windows, D width, V vocabulary, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modeldiff.console import progress
from modeldiff.errors import InputError, MachineError
from modeldiff.features.codes import Encoder, block_rows
from modeldiff.features.windows import Window, padded_windows
from modeldiff.lm.batches import batches, chunks, token_budget
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import replace_in_residual, residual_after
from modeldiff.sides import SIDES
from modeldiff.workspace.activations import Block

# What stands at the replaced places. `stored`: the activation as harvested, which shows what the storage's rounding
# costs; `shared_only`: the reconstruction without the exclusive features.
VARIANTS = ("clean", "stored", "crosscoder", "shared_only", "mean", "zero")
# Where losses are taken: at every prediction, or only at those made from a replaced token.
SCOPES = ("all", "replaced")

# Two sets of a batch's logits are in memory, each of at most 2^28 values (1 GiB in float32).
_LOGIT_VALUES = 1 << 28
# The model is compared with the store on this many windows before it is measured.
_CHECKED_WINDOWS = 8
# Measured on the bundled pair: 0.002 for activations stored in bfloat16, 0.007 when the model too runs in bfloat16 in
# place of float32. Another model or layer differs by about the whole spread.
_MOST_GAP = 0.1


@dataclass(frozen=True)
class Losses:
    """Sums over the predictions of each window, W windows."""

    loss: NDArray[np.float64]
    """(W, variants, scopes): cross-entropy of the next token, nats."""
    kl: NDArray[np.float64]
    """(W, variants, scopes): KL from the clean distribution of the next token to the variant's, nats."""
    positions: NDArray[np.int64]
    """(W, scopes): number of predictions."""


def next_token_losses(
    logits_BTV: torch.Tensor, clean_BTV: torch.Tensor, at_P: tuple[torch.Tensor, torch.Tensor], next_P: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(cross-entropy (P,), KL(clean || these) (P,)) in nats.

    Args:
        at_P: sequence and token of each prediction; next_P: the token that follows.
    """
    loss_P, kl_P = np.empty(len(next_P)), np.empty(len(next_P))
    for part in chunks(len(next_P), logits_BTV.shape[-1]):
        place = (at_P[0][part], at_P[1][part])
        log_PV = logits_BTV[place].float().log_softmax(dim=-1)
        clean_PV = clean_BTV[place].float().log_softmax(dim=-1)
        loss_P[part] = -log_PV.gather(1, next_P[part, None])[:, 0].cpu().numpy()
        kl_P[part] = (clean_PV.exp() * (clean_PV - log_PV)).sum(dim=-1).cpu().numpy()
    return loss_P, kl_P


def inlier_means(encoder: Encoder, windows: Sequence[Window]) -> tuple[dict[str, torch.Tensor], int]:
    """(mean activation (D,) by side, float64; number of pairs) of the pairs that are replaced."""
    total = {side: torch.zeros(info.width, dtype=torch.float64) for side, info in encoder.store.info.sides.items()}
    count = 0
    for window in windows:
        x = encoder.store.read(window.rows)
        kept_R = encoder.keeps(*x)
        count += int(kept_R.sum())
        for side, x_RD in zip(SIDES, x, strict=True):
            total[side] += x_RD[kept_R].double().sum(dim=0)
    return {side: sum_D / max(1, count) for side, sum_D in total.items()}, count


def stored_gap(
    lm: LanguageModel, layer: int, side: str, encoder: Encoder, windows: Sequence[Window], mean_D: torch.Tensor
) -> float:
    """How far the model's activations are from the stored ones: root mean square, in units of their spread.

    Raises:
        InputError: it is more than rounding, so this is not what was harvested; or the model lacks a token.
    """
    largest = max(int(window.ids[side].max()) for window in windows)
    if largest >= lm.vocabulary:
        raise InputError(
            f"{encoder.store.artifact.ref} has token {largest} on side {side.upper()}, but model {lm.name} has only "
            f"{lm.vocabulary} tokens: give the harvested model with --model-path-{side}"
        )
    squares = spread = norms = 0.0
    step = max(1, len(windows) // _CHECKED_WINDOWS)
    for window in windows[::step]:
        ids_1T = torch.from_numpy(window.ids[side])[None]
        live_TD = residual_after(lm, layer, ids_1T, torch.ones_like(ids_1T))[0]
        kept_R = encoder.keeps(*encoder.store.read(window.rows))
        stored_RD = encoder.store.read_side(side, window.rows)[kept_R].double()
        live_RD = live_TD.cpu()[torch.from_numpy(window.token[side])].double()[kept_R]
        squares += float((live_RD - stored_RD).square().sum())
        spread += float((stored_RD - mean_D).square().sum())
        norms += float(stored_RD.square().sum())
    # A stream that hardly varies may still be rounded: half a step of bfloat16 (2^-9) of its norm.
    gap = float(np.sqrt(squares / max(spread, 2**-9 * norms, torch.finfo(torch.float64).tiny)))
    if not gap <= _MOST_GAP:
        raise InputError(
            f"model {side.upper()} ({lm.name}) gives other activations after block {layer} than "
            f"{encoder.store.artifact.ref} holds (they differ by {gap:.2g} of their spread): "
            f"give the harvested one with --model-path-{side}, in the harvest's --dtype"
        )
    return gap


def measure(
    lm: LanguageModel,
    layer: int,
    side: str,
    encoder: Encoder,
    windows: Sequence[Window],
    mean_D: torch.Tensor,
    batch_tokens: int | None,
) -> Losses:
    """The losses of one model on all windows, with every variant.

    Raises:
        MachineError: a batch does not fit into memory.
        InputError: a window is too long for the model.
    """
    budget = batch_tokens or token_budget(lm, logit_values=_LOGIT_VALUES)
    shape = (len(windows), len(VARIANTS), len(SCOPES))
    losses = Losses(np.zeros(shape), np.zeros(shape), np.zeros((len(windows), len(SCOPES)), np.int64))
    with progress(f"evaluate {side.upper()}", sum(len(w.rows) for w in windows), "pairs") as bar:
        for batch in batches([len(window.ids[side]) for window in windows], budget):
            try:
                _measure_batch(lm, layer, side, encoder, [windows[i] for i in batch], mean_D, losses, np.array(batch))
            except torch.OutOfMemoryError:
                raise MachineError(
                    f"a batch of {len(batch)} windows does not fit into the memory of {lm.device} with model "
                    f"{side.upper()} ({lm.name}): use a smaller --batch-tokens, or --dtype bfloat16"
                ) from None
            bar.advance(sum(len(windows[i].rows) for i in batch))
    return losses


@torch.inference_mode()
def _measure_batch(
    lm: LanguageModel,
    layer: int,
    side: str,
    encoder: Encoder,
    windows: list[Window],
    mean_D: torch.Tensor,
    losses: Losses,
    numbers_B: NDArray[np.int64],
) -> None:
    """Write the sums of these windows, which are number `numbers_B` of all, into `losses`."""
    ids_BT, mask_BT = padded_windows(windows, side)
    lm.check_length(ids_BT.shape[1])
    sequence_R, position_R, values = _replacements(side, encoder, windows, mean_D)
    is_replaced_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    is_replaced_BT[sequence_R, position_R] = True
    at_P = torch.nonzero(mask_BT[:, 1:], as_tuple=True)
    scopes_SP = torch.stack([torch.ones(len(at_P[0]), dtype=torch.bool), is_replaced_BT[at_P]]).numpy()
    window_P = at_P[0].numpy()

    def per_window(values_P: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B, scopes) sums."""
        sums = [np.bincount(window_P, values_P * inside_P, minlength=len(windows)) for inside_P in scopes_SP]
        return np.stack(sums, axis=1)

    next_P = ids_BT[:, 1:][at_P].to(lm.device)
    at_P = (at_P[0].to(lm.device), at_P[1].to(lm.device))
    losses.positions[numbers_B] = per_window(np.ones(len(window_P))).astype(np.int64)
    clean_BTV = torch.empty(0)
    for number, variant in enumerate(VARIANTS):
        replaced = (
            nullcontext()
            if variant == "clean"
            else replace_in_residual(lm, layer, sequence_R, position_R, values[variant])
        )
        with replaced:
            logits_BTV = lm.logits(ids_BT, mask_BT)
        if variant == "clean":
            clean_BTV = logits_BTV
        loss_P, kl_P = next_token_losses(logits_BTV, clean_BTV, at_P, next_P)
        losses.loss[numbers_B, number] = per_window(loss_P)
        losses.kl[numbers_B, number] = per_window(kl_P)


def _replacements(
    side: str, encoder: Encoder, windows: list[Window], mean_D: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(sequence_R, position_R, what to put there (R, D) by variant), raw units, outliers left out."""
    crosscoder, rows = encoder.crosscoder, block_rows(encoder.crosscoder.n_features)
    shared = crosscoder.slices["shared"]
    sequences, positions = [], []
    parts: dict[str, list[torch.Tensor]] = {"stored": [], "crosscoder": [], "shared_only": []}
    for sequence, window in enumerate(windows):
        block = window.rows
        for start in range(block.start, block.stop, rows):
            piece = Block(block.shard, start, min(start + rows, block.stop))
            f_BF, kept_B = encoder.dense(piece)
            kept = torch.from_numpy(kept_B)
            f_RF = f_BF[kept.to(f_BF.device)]
            f_shared_RF = torch.zeros_like(f_RF)
            f_shared_RF[:, shared] = f_RF[:, shared]
            parts["stored"].append(encoder.store.read_side(side, piece)[kept].to(f_RF.device))
            parts["crosscoder"].append(crosscoder.decode(f_RF)[SIDES.index(side)])
            parts["shared_only"].append(crosscoder.decode(f_shared_RF)[SIDES.index(side)])
            token_B = torch.from_numpy(window.token[side][start - block.start : start - block.start + len(piece)])
            positions.append(token_B[kept])
            sequences.append(torch.full((int(kept.sum()),), sequence))
    values = {variant: torch.cat(found) for variant, found in parts.items()}
    zero_RD = torch.zeros_like(values["crosscoder"])
    values |= {"mean": zero_RD + mean_D.float().to(zero_RD.device), "zero": zero_RD}
    return torch.cat(sequences), torch.cat(positions), values
