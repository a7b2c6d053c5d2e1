"""A training run on disk: sizes, weights, Adam's moments, counters. A run continued from it gives the same bits on the
CPU.

The order of the batches is a function of the seed and the step, so no cursor and no state of a random generator is
needed. Everything is in one safetensors file, numbers in its metadata, so that one rename replaces it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.saving import read_metadata, read_tensors
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import DamagedError, ModeldiffError
from modeldiff.records import check_fields
from modeldiff.workspace.files import replace_into, temporary_path

_NUMBERS = {"step", "left_out", "auxk_nan", "log_bytes"}
_NUMBERS |= {"threshold_total", "threshold_weight", "designated_total", "designated_weight"}
# Audits change them: they need not be those that the run began with.
_SIZES = {"A": "n_a_only", "shared": "n_shared", "B": "n_b_only"}
_NUMBERS |= set(_SIZES.values())
_MOMENTS = {"exp_avg": "first", "exp_avg_sq": "second"}


def write_checkpoint(path: Path, trainer: Trainer, log_bytes: int) -> None:
    """Write the state of a run; `log_bytes` is the length of its log at this step.

    Not while an audit is collecting: the pairs that it holds are not part of the state. Of several ranks each calls it,
    and rank 0 writes: any number of them can go on from the file.
    """
    shards = trainer.shards
    tensors = {}
    for name, value in _tensors(trainer).items():
        whole = shards.gather(name, value)
        if whole is not None:
            tensors[name] = whole.contiguous()
    if not shards.ranks.first:
        return
    config = trainer.crosscoder.config if shards.alone else shards.whole_config
    numbers = {
        "step": trainer.step,
        **{name: getattr(config, name) for name in _SIZES.values()},
        "threshold_total": trainer.threshold.total,
        "threshold_weight": trainer.threshold.weight,
        "designated_total": trainer.threshold_designated.total,
        "designated_weight": trainer.threshold_designated.weight,
        "left_out": trainer.left_out,
        "auxk_nan": trainer.auxk_nan,
        "log_bytes": log_bytes,
    }
    temporary = temporary_path(path)
    save_file(tensors, temporary, metadata={"numbers": json.dumps(numbers)})
    replace_into(temporary, path)


def read_checkpoint(path: Path, trainer: Trainer) -> int:
    """Bring a fresh trainer to the state that was written. Returns `log_bytes`.

    Raises:
        DamagedError: the file is truncated or belongs to another run.
    """
    try:
        numbers = _read_numbers(path)
        shards = trainer.shards
        if shards.alone:
            _resize(trainer, numbers, path)
        spans = None if shards.alone else lambda name: shards.spans(name, shards.ranks.rank)
        read_tensors(path, _tensors(trainer), spans)
    except ModeldiffError as error:
        raise DamagedError(f"{error}; `modeldiff workspace clean` lets the run begin anew") from None
    trainer.step = numbers["step"]
    trainer.threshold.total = numbers["threshold_total"]
    trainer.threshold.weight = numbers["threshold_weight"]
    trainer.threshold_designated.total = numbers["designated_total"]
    trainer.threshold_designated.weight = numbers["designated_weight"]
    trainer.left_out = numbers["left_out"]
    trainer.auxk_nan = numbers["auxk_nan"]
    for state in trainer.optimizer.state.values():
        state.step.fill_(trainer.step)
    return int(numbers["log_bytes"])


def _read_numbers(path: Path) -> dict[str, Any]:
    try:
        numbers = json.loads(read_metadata(path).get("numbers", "{}"))
    except ValueError:
        raise DamagedError(f"{path}: its numbers are not JSON") from None
    check_fields(numbers, required=_NUMBERS, where=str(path))
    return dict(numbers)


def _resize(trainer: Trainer, numbers: dict[str, Any], path: Path) -> None:
    """Give the partitions the sizes that they had; what is in them is read afterwards."""
    sizes = [numbers[name] for name in _SIZES.values()]
    n_features = trainer.crosscoder.n_features
    if any(not isinstance(size, int) or size < 0 for size in sizes) or sum(sizes) != n_features:
        raise DamagedError(f"{path}: partitions of {n_features} features in all expected, found {sizes}")
    rearrange(
        trainer.crosscoder,
        trainer.optimizer,
        {partition: [FRESH] * size for partition, size in zip(_SIZES, sizes, strict=True)},
    )


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The tensors of the state themselves, not copies."""
    tensors = {name: parameter.data for name, parameter in trainer.crosscoder.named_parameters()}
    for name, parameter in trainer.crosscoder.named_parameters():
        for written, moment in _MOMENTS.items():
            tensors[f"{written}.{name}"] = getattr(trainer.optimizer.state[parameter], moment)
    tensors["since_active"] = trainer.since_active_F
    return tensors
