"""The training loop around `Trainer.update`: batches, the log, checkpoints.

A run continued from a checkpoint gives the same bits on the CPU: weights, Adam's moments and counters are in it, and
the order of the batches is a function of the seed and the step, so no cursor and no state of a random generator is
needed. Everything is in one safetensors file, numbers and the log in its metadata, so that one rename replaces it.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from modeldiff.console import progress, say
from modeldiff.crosscoder.audits.auditor import audit_note
from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.saving import read_metadata, read_tensors
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.crosscoder.training.loggers import Log
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import DamagedError, ModeldiffError
from modeldiff.records import check_fields
from modeldiff.workspace.files import temporary_path
from modeldiff.workspace.kept import is_sound, keep
from modeldiff.workspace.stage import CheckpointClock

# Audits change them: they need not be those that the run began with.
_SIZES = {"A": "n_a_only", "shared": "n_shared", "B": "n_b_only"}
_COUNTERS, _AVERAGES = ("step", "left_out", "auxk_nan"), ("threshold", "threshold_designated")


def train(trainer: Trainer, stream: PairStream, checkpoint: Path, timings: Path, seconds: float, log: Log) -> str:
    """Train to the last step, from the checkpoint (written again after some `seconds`) if there is a sound one. Returns
    training.jsonl, `log` gets its lines; to `timings`, pairs/s and the share of the time spent waiting are appended."""
    recipe, first = trainer.recipe, trainer.processes.first
    lines = [read_checkpoint(checkpoint, trainer) if is_sound(checkpoint) else ""]
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


def write_checkpoint(path: Path, trainer: Trainer, log: str) -> None:
    """Write the state of a run, and its log up to this step. Every process calls it, and the first one writes: any
    number of them can go on from the file."""
    gathered = {name: trainer.processes.gather(name, value) for name, value in _tensors(trainer).items()}
    tensors = {name: whole.contiguous() for name, whole in gathered.items() if whole is not None}
    if not trainer.processes.first:
        return
    numbers: dict[str, Any] = {name: getattr(trainer, name) for name in _COUNTERS}
    n_a, n_b, n_features = (len(tensors[name]) for name in ("w_enc_a", "w_enc_b", "b_enc"))
    numbers |= {"n_a_only": n_features - n_b, "n_shared": n_a + n_b - n_features, "n_b_only": n_features - n_a}
    averages = {name: getattr(trainer, name) for name in _AVERAGES}
    numbers |= {name: [average.total, average.weight] for name, average in averages.items()}
    temporary = temporary_path(path)
    save_file(tensors, temporary, metadata={"numbers": json.dumps(numbers), "log": log})
    keep(temporary, path)


def read_checkpoint(path: Path, trainer: Trainer) -> str:
    """Bring a fresh trainer to the state that was written. Returns the log.

    Raises:
        DamagedError: the file is truncated or belongs to another run.
    """
    required = {*_COUNTERS, *_AVERAGES, *_SIZES.values()}
    try:
        metadata = read_metadata(path)
        numbers = json.loads(metadata.get("numbers", "{}"))
        check_fields(numbers, required=required, where=str(path))
        if trainer.processes.world == 1:
            _resize(trainer, numbers, path)
        read_tensors(path, _tensors(trainer), trainer.processes.spans)
    except (ModeldiffError, json.JSONDecodeError) as error:
        what = str(error) if isinstance(error, ModeldiffError) else f"{path}: its numbers are not JSON"
        raise DamagedError(f"{what}; `modeldiff workspace clean` lets the run begin anew") from None
    for name in _COUNTERS:
        setattr(trainer, name, numbers[name])
    for name in _AVERAGES:
        average = getattr(trainer, name)
        average.total, average.weight = numbers[name]
    for state in trainer.optimizer.state.values():
        state["step"].fill_(trainer.step)
    return metadata.get("log", "")


def _resize(trainer: Trainer, numbers: dict[str, Any], path: Path) -> None:
    """Give the partitions the sizes that they had; what is in them is read afterwards."""
    sizes = [numbers[name] for name in _SIZES.values()]
    n_features = trainer.crosscoder.n_features
    if any(not isinstance(size, int) or size < 0 for size in sizes) or sum(sizes) != n_features:
        raise DamagedError(f"{path}: partitions of {n_features} features in all expected, found {sizes}")
    order = {partition: [FRESH] * size for partition, size in zip(_SIZES, sizes, strict=True)}
    rearrange(trainer.crosscoder, trainer.optimizer, order)


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The state itself, no copies."""
    named = dict(trainer.crosscoder.named_parameters())
    tensors = {name: parameter.data for name, parameter in named.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        tensors |= {f"{moment}.{name}": trainer.optimizer.state[parameter][moment] for name, parameter in named.items()}
    return tensors | {"since_active": trainer.since_active_F}
