"""Capture: one side's activations for each shard of the plan, read from the model and written as rows in plan order.

The two sides do not depend on each other, nor do the shards. Batches are made inside a shard, so that a shard's bytes
are the same whether the run was interrupted or not. Wide shards are read and written in parts, to bound the memory.

Layout (normative):
    logs/capture.jsonl?              a line for each file of rows; absent when activations were imported. Of several
                                     processes the others write logs/capture-00001.jsonl and so on
        side, shard, pairs           what was written
        tokens                       read by the model, padding included
        seconds, pairs_per_second

Legend: B sequences, T tokens, D width, N pairs of the shard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modeldiff.console import Progress, progress
from modeldiff.errors import MachineError
from modeldiff.harvest.store import shard_file
from modeldiff.lm.batches import batches, padded, token_budget
from modeldiff.lm.load import LanguageModel
from modeldiff.lm.residual import residual_after, verify_hook
from modeldiff.workspace.activations import plan_name, rows_name
from modeldiff.workspace.bits import ENCODINGS
from modeldiff.workspace.plan import ShardPlan, read_plan
from modeldiff.workspace.stage import Work

# Rows of one side that are in memory at once.
PART_BYTES = 256 << 20


@dataclass(frozen=True)
class Capture:
    """What to read from one model, and how to keep it; the labels of the sources are for messages."""

    side: str
    layer: int
    encoding: str
    batch_tokens: int | None
    sources: list[str]


def capture_side(
    work: Work, capture: Capture, shards: list[int], missing: Sequence[int], load: Callable[[], LanguageModel]
) -> None:
    """Write the rows of one side for the missing shards; `shards` are the pairs of each, and the model is loaded if any
    is missing. Raises MachineError: activations are not finite, or a batch does not fit into memory."""
    if not missing:
        return
    lm = load()
    verify_hook(lm, capture.layer)
    done = sum(pairs for shard, pairs in enumerate(shards) if work.has(rows_name(shard, capture.side)))
    total = done + sum(shards[shard] for shard in missing)
    log = work.folder / "logs" / (f"capture-{work.rank:05d}.jsonl" if work.rank else "capture.jsonl")
    log.parent.mkdir(exist_ok=True)
    with progress(f"capture {capture.side.upper()}", total, "pairs", done=done) as bar:
        for shard in missing:
            started = time.monotonic()
            plan = read_plan(work.folder / plan_name(shard))
            tokens = 0
            with shard_file(work, shard, capture.side, len(plan.pairs), lm.width, capture.encoding) as append:
                for x_ND, read in capture_shard(lm, plan, capture, bar):
                    append(x_ND)
                    tokens += read
                    del x_ND  # before the next part takes its place
            seconds = max(time.monotonic() - started, 1e-9)
            line = {"side": capture.side, "shard": shard, "pairs": len(plan.pairs), "tokens": tokens}
            line |= {"seconds": round(seconds, 3), "pairs_per_second": round(len(plan.pairs) / seconds, 1)}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def capture_shard(
    lm: LanguageModel, plan: ShardPlan, capture: Capture, bar: Progress | None = None
) -> Iterator[tuple[torch.Tensor, int]]:
    """The rows of a shard in plan order, in parts of whole documents of at most PART_BYTES (or one document): (x (N, D)
    in the stored dtype on the CPU; tokens read, padding included) of each."""
    pairs_of = np.bincount(plan.pairs.document, minlength=len(plan.documents))
    row_bytes = lm.width * ENCODINGS[capture.encoding][0].itemsize
    start = 0
    while start < len(pairs_of):
        fitting = int(np.searchsorted(np.cumsum(pairs_of[start:]) * row_bytes, PART_BYTES, side="right"))
        stop = start + max(1, fitting)
        yield _capture_documents(lm, plan, capture, range(start, stop), bar)
        start = stop


def _capture_documents(
    lm: LanguageModel, plan: ShardPlan, capture: Capture, documents: range, bar: Progress | None
) -> tuple[torch.Tensor, int]:
    pairs, token_N = plan.pairs, plan.pairs.token[capture.side]
    # The rows of document i are first_row[i] to first_row[i + 1] of the shard, and those of this part follow `first`.
    first_row = np.searchsorted(pairs.document, np.arange(len(plan.documents) + 1))
    first, stop = first_row[documents.start], first_row[documents.stop]
    x_ND = torch.empty((stop - first, lm.width), dtype=ENCODINGS[capture.encoding][0])
    # What stands after the last token of a pair cannot change it (attention is causal), so it is not read.
    lengths = [int(token_N[first_row[i] : first_row[i + 1]].max()) + 1 for i in documents]
    read = 0
    for chosen in batches(lengths, capture.batch_tokens or token_budget(lm)):
        length = max(lengths[i] for i in chosen)
        batch = [documents[i] for i in chosen]
        ids = [plan.documents[documents[i]].tokens[capture.side].ids[: lengths[i]] for i in chosen]
        ids_BT, mask_BT = padded([torch.from_numpy(ids_T.astype(np.int64)) for ids_T in ids])
        rows = np.concatenate([np.arange(first_row[i], first_row[i + 1]) for i in batch])
        place_of = np.repeat(np.arange(len(batch)), [first_row[i + 1] - first_row[i] for i in batch])
        flat = torch.from_numpy(place_of * length + token_N[rows])
        try:
            with torch.inference_mode():
                x_RD = residual_after(lm, capture.layer, ids_BT, mask_BT).flatten(0, 1)[flat.to(lm.device)]
        except torch.OutOfMemoryError:
            raise MachineError(
                f"a batch of {ids_BT.numel()} tokens does not fit into the memory of {lm.device} with model "
                f"{capture.side.upper()} ({lm.name}): use a smaller --batch-tokens, or --dtype bfloat16"
            ) from None
        stored_RD = x_RD.to(x_ND.dtype).cpu()
        if not torch.isfinite(stored_RD).all():
            _refuse(plan, capture, lm, rows, x_RD, stored_RD)
        x_ND[torch.from_numpy(rows - first)] = stored_RD
        read += ids_BT.numel()
        if bar:
            bar.advance(len(rows))
    return x_ND, read


def _refuse(
    plan: ShardPlan, capture: Capture, lm: LanguageModel, rows: np.ndarray, x_RD: torch.Tensor, stored_RD: torch.Tensor
) -> None:
    bad = int(torch.nonzero(~torch.isfinite(stored_RD).all(dim=1))[0])
    row = int(rows[bad])
    document = plan.documents[plan.pairs.document[row]]
    what = (
        f"model {capture.side.upper()} ({lm.name}): activations of document {document.index} "
        f"(source {capture.sources[document.source]}), token {plan.pairs.token[capture.side][row]}"
    )
    if torch.isfinite(x_RD[bad]).all():
        raise MachineError(f"{what} are too large for {capture.encoding}: use --storage bfloat16 or float32")
    dtype = str(lm.dtype).removeprefix("torch.")
    mend = "check its weights" if dtype == "float32" else "use --dtype float32"
    raise MachineError(f"{what} are not finite in {dtype}: {mend}")
