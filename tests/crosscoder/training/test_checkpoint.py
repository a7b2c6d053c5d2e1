"""Checkpoints in parts: any number of processes reads what any other wrote; a kill or damage leaves a whole one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.training.checkpoint import continued, read_checkpoint, write_checkpoint
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.workspace.ranks import ranks
from tests.crosscoder.made import centred, make_trainer, planted_batches
from tests.processes import as_ranks

WIDTHS = (16, 20)


def trained(steps: int) -> Trainer:
    trainer = make_trainer(exclusive=0.15, steps=30, recipe={"threshold_start": 1})
    for x in planted_batches(steps, widths=WIDTHS):
        trainer.update(*x)
    return trainer


def state(trainer: Trainer) -> dict[str, Any]:
    named = dict(trainer.crosscoder.named_parameters())
    found: dict[str, Any] = {"since": trainer.since_active_F, **{name: one.detach() for name, one in named.items()}}
    for name, one in named.items():
        found |= {f"{moment} of {name}": value for moment, value in trainer.optimizer.state[one].items()}
    numbers = [trainer.left_out, trainer.auxk_nan, trainer.threshold.total, trainer.threshold.weight]
    return found | {"numbers": torch.tensor(numbers, dtype=torch.float64)}


def assert_same(found: Trainer, expected: Trainer) -> None:
    for (name, value), other in zip(state(found).items(), state(expected).values(), strict=True):
        if name.startswith("step of"):  # the copies count as steps
            continue
        assert torch.equal(value, other), name


def _copy(index: Path, said: Path) -> None:
    """As one of several processes: read the checkpoint, and write it again as that of the next step."""
    ours, alone = ranks(), make_trainer(exclusive=0.15, steps=30)
    shards = Shards(ours, alone.crosscoder.config)
    part = shards.initialised(centred(*WIDTHS), seed=1)
    trainer = Trainer(part, alone.recipe, processes=shards)
    log = continued(index, trainer)
    said.write_text(log)
    if log:
        trainer.step += 1
        write_checkpoint(index, trainer, log)
    ours.barrier()


def copy_by(world: int, index: Path) -> list[str]:
    """The log that each process read."""
    files = [index.parent / f"said{rank}.txt" for rank in range(world)]
    assert as_ranks(_copy, [(index, file) for file in files]) == [0] * world
    return [file.read_text() for file in files]


def test_any_number_of_processes_goes_on_from_any_other(tmp_path: Path) -> None:
    index, trainer = tmp_path / "c.json", trained(5)
    write_checkpoint(index, trainer, "a log\n")
    for copies, world in enumerate((3, 2), 1):
        assert copy_by(world, index) == ["a log\n"] * world
        assert len(list(tmp_path.glob("*.safetensors"))) == world, "the parts before are gone"
        found = make_trainer(exclusive=0.15, steps=30)
        assert continued(index, found) == "a log\n"
        assert found.step == trainer.step + copies
        assert_same(found, trainer)


def test_what_is_damaged_in_any_part_is_seen_by_all_processes(tmp_path: Path) -> None:
    index = tmp_path / "c.json"
    write_checkpoint(index, trained(2), "a log\n")
    copy_by(2, index)
    (part,) = tmp_path.glob("*.1.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert copy_by(2, index) == ["", ""]
    assert [path for path in tmp_path.iterdir() if path.stem != "said0" and path.stem != "said1"] == []


class KilledError(Exception):
    """Stands for a kill."""


def dying_at(moment: int, patch: pytest.MonkeyPatch) -> None:
    """Die before the operation on files that has this number."""
    done = 0

    def counted(operation: Any) -> Any:
        def work(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done == moment:
                raise KilledError
            return operation(*args, **kwargs)

        return work

    for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "write_bytes"), (os, "fsync")):
        patch.setattr(owner, name, counted(getattr(owner, name)))


def test_a_kill_at_any_moment_leaves_this_checkpoint_or_the_one_before(tmp_path: Path) -> None:
    first, second = trained(3), trained(6)
    before = tmp_path / "before"
    before.mkdir()
    write_checkpoint(before / "c.json", first, "first\n")
    found, moment, finished = [], 0, False
    while not finished:
        moment += 1
        folder = tmp_path / str(moment)
        shutil.copytree(before, folder)
        with pytest.MonkeyPatch.context() as patch:
            dying_at(moment, patch)
            try:
                write_checkpoint(folder / "c.json", second, "second\n")
                finished = True
            except KilledError:
                pass
        trainer = make_trainer(exclusive=0.15, steps=30)
        log = continued(folder / "c.json", trainer)
        assert_same(trainer, {"first\n": first, "second\n": second}[log])
        assert len(list(folder.glob("c-*.safetensors"))) == 1, "what belongs to no checkpoint is gone"
        found.append(log)
    assert found == sorted(found)
    assert set(found) == {"first\n", "second\n"}
    assert moment > 8
    assert read_checkpoint(folder / "c.json", trainer) == "second\n"
