"""The training loop around `Trainer.update`: batches, the log, checkpoints."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from pathlib import Path

from modeldiff.console import progress, say
from modeldiff.crosscoder.audits.auditor import audit_note
from modeldiff.crosscoder.training.checkpoint import continued, write_checkpoint
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.crosscoder.training.loggers import Log
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.workspace.stage import CheckpointClock


def train(trainer: Trainer, stream: PairStream, checkpoint: Path, timings: Path, seconds: float, log: Log) -> str:
    """Train to the last step, from the checkpoint (written again after some `seconds`) if there is a sound one. Returns
    training.jsonl, `log` gets its lines; to `timings`, pairs/s and the share of the time spent waiting are appended."""
    recipe, first = trainer.recipe, trainer.processes.first
    lines = [continued(checkpoint, trainer)]
    due = CheckpointClock(seconds)
    timings.parent.mkdir(exist_ok=True)
    with (
        (timings if first else Path(os.devnull)).open("a", encoding="utf-8") as timed,
        progress("train", recipe.steps, "steps", done=trainer.step) as bar,
        closing(stream.batches(trainer.step)) as batches,
    ):
        began, waited, begun_at = time.monotonic(), 0.0, None
        while trainer.step < recipe.steps:
            asked = time.monotonic()
            x_a, x_b = next(batches)
            waited += time.monotonic() - asked
            line = trainer.update(x_a, x_b)
            if line:
                lines.append(json.dumps(line) + "\n")
                log(line["step"], line)
                if begun_at is not None:
                    elapsed, done = max(1e-9, time.monotonic() - began), (trainer.step - begun_at) * recipe.batch
                    record = {"step": trainer.step, "pairs_per_second": round(done / elapsed, 1)}
                    timed.write(json.dumps({**record, "waiting_for_data": round(waited / elapsed, 4)}) + "\n")
                began, waited, begun_at = time.monotonic(), 0.0, trainer.step
                exclusive, fve = 100 * (line["slots"]["A"] + line["slots"]["B"]), line["fve"]
                bar.note(f"loss {line['loss']:.3g} FVE {fve['a']:.2f} {fve['b']:.2f} excl {exclusive:.0f}%")
                if line["audit"]:
                    say(audit_note(line))
            bar.advance()
            # The pairs that an audit is collecting are in no checkpoint: one that is due waits for the audit.
            is_due = trainer.processes.number(due.now() and first) > 0
            collecting = trainer.callback is not None and trainer.callback.collecting
            if (is_due and not collecting) or trainer.step == recipe.steps:
                with due.writing():
                    write_checkpoint(checkpoint, trainer, "".join(lines))
    return "".join(lines)
