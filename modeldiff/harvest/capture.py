"""Capture: one side's activations for each shard of the plan, read from the model and written as rows in plan order.

The two sides do not depend on each other, nor do the shards. Batches are made inside a shard, so that a shard's bytes
are the same whether the run was interrupted or not. Wide shards are read and written in parts, to bound the memory.

On a GPU, the rows of a part and their statistics stay there until all of its batches are done. The model is given the
next parts in a thread of its own, which never waits for the GPU, while this one is copied, written and made durable.
Elsewhere the model uses all cores, and one thing is done after the other.

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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from modeldiff.console import Progress, progress
from modeldiff.errors import MachineError
from modeldiff.harvest.store import Rows, shard_file
from modeldiff.lm.batches import batches, padded, token_budget
from modeldiff.lm.device import fetched, onto
from modeldiff.lm.load import LanguageModel
from modeldiff.lm.residual import residual_after, verify_hook
from modeldiff.threads import prefetched
from modeldiff.workspace.activations import plan_name, rows_name
from modeldiff.workspace.bits import ENCODINGS
from modeldiff.workspace.plan import ShardPlan, read_plan
from modeldiff.workspace.stage import Work

# Rows of one side that are in memory at once: a part.
PART_BYTES = 256 << 20
# Parts that a GPU is given ahead of the one being written: with these it is busy while a shard is made durable.
_AHEAD = 2


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
    plans = (read_plan(work.folder / plan_name(shard)) for shard in missing)
    with (
        progress(f"capture {capture.side.upper()}", total, "pairs", done=done) as bar,
        closing(captured(lm, capture, plans, bar)) as parts,
    ):
        for shard in missing:
            started = time.monotonic()
            tokens, left = 0, shards[shard]
            with shard_file(work, shard, capture.side, left, lm.width, capture.encoding) as append:
                while left:
                    rows, read = next(parts)
                    append(rows)
                    tokens, left = tokens + read, left - len(rows.x_ND)
                    del rows  # before the next part takes its place
            seconds = max(time.monotonic() - started, 1e-9)
            line = {"side": capture.side, "shard": shard, "pairs": shards[shard], "tokens": tokens}
            line |= {"seconds": round(seconds, 3), "pairs_per_second": round(shards[shard] / seconds, 1)}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def captured(
    lm: LanguageModel, capture: Capture, plans: Iterable[ShardPlan], bar: Progress | None = None
) -> Generator[tuple[Rows, int], None, None]:
    """The rows of shards in plan order, in parts of whole documents of at most PART_BYTES (or one document): (rows on
    the CPU; tokens read, padding included) of each. Raises MachineError: they are not finite, or a batch does not fit
    into memory."""
    parts = ((plan, documents) for plan in plans for documents in _parts(plan, lm, capture))

    def begin(part: tuple[ShardPlan, range]) -> tuple[Callable[[], list[torch.Tensor]], int]:
        try:
            return _capture(lm, capture, *part, bar)
        except torch.OutOfMemoryError:
            budget = capture.batch_tokens or token_budget(lm)
            raise MachineError(
                f"a batch of {budget} tokens does not fit into the memory of {lm.device} with model "
                f"{capture.side.upper()} ({lm.name}): run `modeldiff harvest` with a smaller --batch-tokens, and a "
                "diff of the same goes on from it, or with --dtype bfloat16"
            ) from None

    ahead = lm.device.type == "cuda"
    begun = prefetched(begin, parts, ahead=_AHEAD) if ahead else ((part, begin(part)) for part in parts)
    with closing(begun):
        for (plan, documents), (fetch, read) in begun:
            *rows, finite_N = fetch()
            del fetch
            _check(Rows(*rows), finite_N, lm, capture, plan, documents)
            yield Rows(*rows), read
            del rows  # before the next part takes its place


def _parts(plan: ShardPlan, lm: LanguageModel, capture: Capture) -> Iterator[range]:
    pairs_of = np.bincount(plan.pairs.document, minlength=len(plan.documents))
    row_bytes = lm.width * ENCODINGS[capture.encoding][0].itemsize
    start = 0
    while start < len(pairs_of):
        fitting = int(np.searchsorted(np.cumsum(pairs_of[start:]) * row_bytes, PART_BYTES, side="right"))
        stop = start + max(1, fitting)
        yield range(start, stop)
        start = stop


def _capture(
    lm: LanguageModel, capture: Capture, plan: ShardPlan, documents: range, bar: Progress | None
) -> tuple[Callable[[], list[torch.Tensor]], int]:
    """(what gives the fields of `Rows` of these documents, and for each row whether it was finite in the model's dtype;
    the tokens read). On a GPU all of it is under way then, and nothing here waited for it."""
    pairs, token_N = plan.pairs, plan.pairs.token[capture.side]
    # The rows of document i are first_row[i] to first_row[i + 1] of the shard, and those of this part follow `first`.
    first_row = np.searchsorted(pairs.document, np.arange(len(plan.documents) + 1))
    first, stop = first_row[documents.start], first_row[documents.stop]
    place = lm.device if lm.device.type == "cuda" else torch.device("cpu")
    x_ND = torch.empty((stop - first, lm.width), dtype=ENCODINGS[capture.encoding][0], device=place)
    finite_N = torch.empty(stop - first, dtype=torch.bool, device=place)
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
        with torch.inference_mode():
            x_BTD = residual_after(lm, capture.layer, ids_BT, mask_BT)
            x_RD = x_BTD.flatten(0, 1)[onto(flat, lm.device)]
            at_R = onto(torch.from_numpy(rows - first), place)
            x_ND[at_R] = x_RD.to(x_ND.dtype).to(place)
            finite_N[at_R] = torch.isfinite(x_RD).all(dim=1).to(place)
        read += ids_BT.numel()
        if bar:
            bar.advance(len(rows))
    made = Rows.of(x_ND)
    return fetched([made.x_ND, made.sums_KD, made.norms_N, finite_N]), read


def _check(
    rows: Rows, finite_N: torch.Tensor, lm: LanguageModel, capture: Capture, plan: ShardPlan, documents: range
) -> None:
    """Raise MachineError for the first row that is not finite. finite_N: whether it was so in the model's dtype."""
    suspect = torch.nonzero(~torch.isfinite(rows.norms_N)).flatten()  # also norms that are too large for float32
    bad = suspect[~torch.isfinite(rows.x_ND[suspect]).all(dim=1)]
    if not len(bad):
        return
    row = int(bad[0]) + int(np.searchsorted(plan.pairs.document, documents.start))
    document = plan.documents[plan.pairs.document[row]]
    what = (
        f"model {capture.side.upper()} ({lm.name}): activations of document {document.index} "
        f"(source {capture.sources[document.source]}), token {plan.pairs.token[capture.side][row]}"
    )
    if finite_N[bad[0]]:
        raise MachineError(f"{what} are too large for {capture.encoding}: use --storage bfloat16 or float32")
    dtype = str(lm.dtype).removeprefix("torch.")
    mend = "check its weights" if dtype == "float32" else "use --dtype float32"
    raise MachineError(f"{what} are not finite in {dtype}: {mend}")
