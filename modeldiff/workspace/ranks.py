"""The processes of one run: `torchrun --nproc-per-node N -m modeldiff ...` starts N of them, ranks 0 to N - 1.

Rank 0 decides, holds the lock and publishes; the others learn it by `broadcast` and work in the same folder (on several
machines: a shared file system). What each rank commits is kept when another one dies, and the same command with any
number of processes goes on from there. Objects travel over gloo, on the CPU; where there is CUDA the same group also
carries CUDA tensors, over NCCL. Without a launcher there is one process, rank 0 of 1, and nothing waits.
"""

from __future__ import annotations

import atexit
import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any, TypeVar

from modeldiff.console import mute
from modeldiff.errors import MachineError
from modeldiff.workspace.artifact import Artifact, Manifest
from modeldiff.workspace.stage import Build, Order, Work, produce
from modeldiff.workspace.workspace import PARTIAL, Workspace

# What torchrun sets, and what a group cannot be opened without.
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A process that ends closes its connections, and the others know at once. This is for one that hangs, or whose machine
# is gone without a word; it is long because ranks also wait for rank 0 while it plans.
_PATIENCE = datetime.timedelta(hours=6)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    """Its number, from 0."""
    world: int = 1
    """How many there are."""
    local_rank: int = 0
    """Its number on this machine: which of its devices it takes."""

    @property
    def first(self) -> bool:
        """True for the one that decides, holds the lock and publishes."""
        return self.rank == 0

    def mine(self, work: Sequence[T]) -> Sequence[T]:
        """This rank's part: every `world`-th, from its own number on."""
        return work[self.rank :: self.world]

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's `value`, on every rank. Raises MachineError for a lost process."""
        if self.world == 1:
            return value
        from torch import distributed

        holder = [value]
        with lost_process():
            distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    def all(self, value: T) -> list[T]:
        """Every rank's `value`, by rank. Raises MachineError for a lost process."""
        if self.world == 1:
            return [value]
        from torch import distributed

        holder: list[Any] = [None] * self.world
        with lost_process():
            distributed.all_gather_object(holder, value)
        return holder

    def barrier(self) -> None:
        """Wait until every rank is here. Raises MachineError for a lost process."""
        # Not distributed.barrier(): with CUDA that would go over NCCL, and take a device of its own choice.
        self.all(None)


def launched() -> tuple[Ranks, int]:
    """(this process among those of the run, how many of them are on this machine) by torchrun's environment variables;
    nothing is opened."""
    if any(name not in os.environ for name in _ENVIRONMENT):
        return Ranks(), 1
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Ranks(rank, world, local_rank), int(os.environ.get("LOCAL_WORLD_SIZE", world))


@cache
def ranks() -> Ranks:
    """The ranks of this run; the group is opened at the first call. From then on a rank other than 0 is mute (see
    console.py), and SIGTERM, which is how torchrun ends the others when one has failed, raises a MachineError. Raises
    MachineError: the others cannot be reached."""
    made, _ = launched()
    if made.world == 1:
        return Ranks()
    import torch
    from torch import distributed

    if not made.first:
        mute()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    if not distributed.is_initialized():
        with lost_process():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=_PATIENCE)

        def leave() -> None:
            if getattr(sys, "last_value", None) is not None:
                # An error that nobody handled: NCCL's connections close only when all processes close them.
                os._exit(1)
            if distributed.is_initialized():
                distributed.destroy_process_group()

        atexit.register(leave)
    return made


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise MachineError("this run was stopped, or another process of it ended: the same command continues")


@contextmanager
def lost_process() -> Iterator[None]:
    """Put this around a collective operation: a connection that closes, or nobody for hours, becomes a MachineError."""
    try:
        yield
    except RuntimeError as error:  # gloo, NCCL and the store all raise subclasses of it
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        raise MachineError(
            "another process of this run ended, or could not be reached: the same command continues"
        ) from error


def produce_by_first(
    workspace: Workspace, order: Order, build: Build, *, name: str | None = None, force: bool = False
) -> Artifact:
    """`produce` by rank 0 alone, for work that is not shared; the others wait for the artifact. Raises as
    `produce_together`."""
    ours = ranks()
    make = build if ours.first else lambda _work: {}
    return produce_together(ours, workspace, lambda: (order, make), name=name, force=force)


def produce_together(
    ranks: Ranks, workspace: Workspace, prepare: Callable[[], tuple[Order, Build]], *, name: str | None, force: bool
) -> Artifact:
    """`produce` by every rank; each gets the artifact. With one process this is `produce`.

    prepare: gives what is wanted and how it is made. Rank 0 calls it first, so that what is wrong with the input is
    said once. The others call it when there is something to build, and must come to the same order. Raises
    MachineError: as `produce`; or a process was lost, or sees other inputs than rank 0. A `build` that needs the others
    to be done waits for them by `ranks.barrier`; the metrics are those that rank 0's gives.
    """
    if ranks.first:
        order, build = prepare()

        def lead(work: Work) -> dict[str, Any]:
            ranks.broadcast(("build", work.folder.name, order.fingerprint))
            return build(work)

        artifact = produce(workspace, order, lead, name=name, force=force)
        ranks.broadcast(("made", artifact.kind, artifact.manifest.version))
        return artifact
    what, *about = ranks.broadcast()
    if what == "build":
        folder, fingerprint = about
        order, build = prepare()
        if order.fingerprint != fingerprint:
            raise MachineError(
                f"process {ranks.rank} of this run has other inputs or another number format than process 0: "
                "give all of them the same files, and --dtype where their devices differ"
            )
        build(Work(workspace.folder / PARTIAL / folder, ranks.rank))
        _, *about = ranks.broadcast()
    kind, version = about
    # Opened by its path: what is new may be missing for a while where another machine lists a folder.
    folder = workspace.folder / kind / str(version)
    return Artifact(folder, Manifest.read(folder))
