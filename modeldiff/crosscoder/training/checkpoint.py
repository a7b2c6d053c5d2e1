"""Checkpoints of a training, which any number of processes write, and any other number goes on from.

Each process writes its part of weights, moments and counters as a safetensors file. When all of them are there, the
first process writes the index: numbers, the log, and the digests of the parts; then the parts before go. So a kill at
any moment leaves this checkpoint whole or the one before, and nobody holds more than its part. (Not by
torch.distributed.checkpoint: what says there which file holds what is a pickle.)

A run continued from a checkpoint gives the same bits on the CPU: the order of the batches is a function of the seed and
the step, so no cursor and no state of a random generator is needed.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from modeldiff.console import say
from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.fast.sparse import OneProcess
from modeldiff.crosscoder.saving import Spans, overlap, read_tensors
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import DamagedError
from modeldiff.records import bounded, from_json, to_json
from modeldiff.workspace.artifact import FileEntry
from modeldiff.workspace.files import durable_blake3, read_json, rename_into, temporary_path
from modeldiff.workspace.kept import SUFFIX, found_entry, is_sound, keep_json
from modeldiff.workspace.ranks import Ranks

_MEND = "`modeldiff workspace clean` lets the run begin anew"


@dataclasses.dataclass(frozen=True)
class _Index:
    step: int
    left_out: int
    auxk_nan: int
    threshold: tuple[float, float]
    threshold_designated: tuple[float, float]
    parts: list[FileEntry]
    """One of each process, by rank."""
    log: str
    features: tuple[int, int, int] = bounded(least=0)
    """Of each partition (A, shared, B): audits change them, so they need not be those that the run began with."""


def continued(index_path: Path, trainer: Trainer) -> str:
    """Bring a fresh trainer to the checkpoint, if there is a sound one, and return its log; otherwise nothing. What is
    damaged is named and dropped."""
    processes = trainer.processes
    there = processes.all(processes.first and is_sound(index_path))[0]
    parts = _parts(index_path, _read(index_path)) if there else {}
    if damaged := _damaged(parts, processes):
        for path in damaged:
            say(f"{path} is damaged: it is dropped, and what it held is made again")
        parts = {}
    if processes.first:
        if not parts:
            for path in (index_path, index_path.with_name(index_path.name + SUFFIX)):
                path.unlink(missing_ok=True)
        _drop_parts(index_path, keep=set(parts))
    return read_checkpoint(index_path, trainer) if parts else ""


def _damaged(parts: dict[Path, FileEntry], processes: OneProcess) -> list[Path]:
    """Each process reads its share, and all know of all."""
    mine = list(parts)[processes.rank :: processes.world]
    found = processes.all([path for path in mine if found_entry(path) != parts[path]])
    return [path for paths in found for path in paths]


def write_checkpoint(index_path: Path, trainer: Trainer, log: str) -> None:
    """Write the state of a run, and its log up to this step. Every process calls it."""
    processes = trainer.processes
    part = _part(index_path, trainer.step, processes.rank)
    temporary = temporary_path(part)
    save_file({name: value.cpu() for name, value in _tensors(trainer).items()}, temporary)
    entry = FileEntry(temporary.stat().st_size, durable_blake3(temporary))
    rename_into(temporary, part)
    features = _features(trainer)
    parts = processes.all(entry)
    if not processes.first:
        return
    index = _Index(
        step=trainer.step,
        left_out=trainer.left_out,
        auxk_nan=trainer.auxk_nan,
        threshold=(trainer.threshold.total, trainer.threshold.weight),
        threshold_designated=(trainer.threshold_designated.total, trainer.threshold_designated.weight),
        features=features,
        parts=parts,
        log=log,
    )
    keep_json(index_path, to_json(index))
    _drop_parts(index_path, keep=set(_parts(index_path, index)))


def read_checkpoint(index_path: Path, trainer: Trainer) -> str:
    """Bring a fresh trainer to the state that was written: each process reads the rows that it has. Returns the log.

    Raises:
        DamagedError: a file is truncated or belongs to another run.
    """
    index, processes = _read(index_path), trainer.processes
    try:
        _resize(trainer, index, index_path)
        a, shared, b = index.features
        whole = dataclasses.replace(trainer.crosscoder.config, n_a_only=a, n_shared=shared, n_b_only=b)
        mine, tensors = Shards(Ranks(processes.rank, processes.world), whole), _tensors(trainer)
        for rank, path in enumerate(_parts(index_path, index)):
            theirs = Shards(Ranks(rank, len(index.parts)), whole)
            read_tensors(path, tensors, partial(_overlap, theirs, mine))
    except DamagedError as error:
        raise DamagedError(f"{error}; {_MEND}") from None
    trainer.step, trainer.left_out, trainer.auxk_nan = index.step, index.left_out, index.auxk_nan
    trainer.threshold.total, trainer.threshold.weight = index.threshold
    trainer.threshold_designated.total, trainer.threshold_designated.weight = index.threshold_designated
    for state in trainer.optimizer.state.values():
        state["step"].fill_(trainer.step)
    return index.log


def _read(index_path: Path) -> _Index:
    try:
        return from_json(_Index, read_json(index_path), str(index_path))
    except DamagedError as error:
        raise DamagedError(f"{error}; {_MEND}") from None


def _part(index_path: Path, step: int, rank: int) -> Path:
    return index_path.with_name(f"{index_path.stem}-{step}.{rank}.safetensors")


def _parts(index_path: Path, index: _Index) -> dict[Path, FileEntry]:
    return {_part(index_path, index.step, rank): entry for rank, entry in enumerate(index.parts)}


def _drop_parts(index_path: Path, keep: set[Path]) -> None:
    for path in index_path.parent.glob(f"{index_path.stem}*.safetensors"):
        if path not in keep:
            path.unlink(missing_ok=True)


def _overlap(theirs: Shards, mine: Shards, name: str) -> Spans | None:
    held, wanted = theirs.spans(name), mine.spans(name)
    return None if held is None or wanted is None else overlap(held, wanted)


def _features(trainer: Trainer) -> tuple[int, int, int]:
    """Of all processes together."""
    found = trainer.by_partition(torch.ones_like(trainer.since_active_F))
    return int(found["A"]), int(found["shared"]), int(found["B"])


def _resize(trainer: Trainer, index: _Index, index_path: Path) -> None:
    """Give the partitions the sizes that they had; what is in them is read afterwards."""
    has, wanted = _features(trainer), index.features
    if has == wanted:
        return
    if trainer.processes.world > 1 or sum(wanted) != sum(has):
        raise DamagedError(f"{index_path}: partitions of {sum(has)} features in all expected, found {[*wanted]}")
    order = {name: [FRESH] * size for name, size in zip(("A", "shared", "B"), wanted, strict=True)}
    rearrange(trainer.crosscoder, trainer.optimizer, order)


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The state itself, no copies."""
    named = dict(trainer.crosscoder.named_parameters())
    tensors = {name: parameter.data for name, parameter in named.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        tensors |= {f"{moment}.{name}": trainer.optimizer.state[parameter][moment] for name, parameter in named.items()}
    return tensors | {"since_active": trainer.since_active_F}
