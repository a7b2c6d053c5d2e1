"""Child processes that begin to work at once: a forkserver has imported torch and transformers once for all of them."""

import math
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
STAGES = ("harvest", "crosscoder.training", "features", "contrast", "steer", "features.measures.stitch")
# What they import when they need it; a name that is gone is passed over, and children import it themselves.
LATER = [
    "modeldiff.features.build", "modeldiff.contrast.continuations", "modeldiff.figures", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
]  # fmt: skip
CONTEXT.set_forkserver_preload(["modeldiff.cli.main", *(f"modeldiff.{stage}.run" for stage in STAGES), *LATER])
# Seconds after which a child counts as hanging.
DEADLINE = 120


def two(args: list[str], folder: Path, dies_at: dict[int, int]) -> list[tuple[int, list[str]]]:
    """Run `modeldiff ARGS` as rank 0 and rank 1 of one run, without torchrun; exit code and printed lines of each.

    dies_at: by rank, kill it with SIGKILL when it is about to keep its file of so many (counted from 1).
    """
    logs = [folder / f"rank{rank}.log" for rank in (0, 1)]
    for log in logs:
        log.write_text("")
    codes = as_ranks(_modeldiff, [(logs[rank], args, dies_at.get(rank)) for rank in (0, 1)])
    return [(code, log.read_text().splitlines()) for code, log in zip(codes, logs, strict=True)]


def as_ranks(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[int | None]:
    """Run `work(*arguments[rank])` in a process for each rank of one run; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = len(arguments)
    children = [
        CONTEXT.Process(target=_as_rank, args=(rank, world, port, work, own)) for rank, own in enumerate(arguments)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(DEADLINE)
        child.kill()  # nothing, unless it hangs
        child.join()
    return [child.exitcode for child in children]


def _as_rank(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    work(*arguments)


def _modeldiff(log: Path, args: list[str], dies_at: int | None) -> None:
    from modeldiff.catalogue import stored
    from modeldiff.cli.main import run
    from modeldiff.workspace import stage
    from modeldiff.workspace.stage import Work

    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    names = []

    def or_die(original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            names.append(args)
            if len(names) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*args)

        return call

    # Checkpoints follow the work, not the time that it takes.
    stage._WRITING_SHARE = math.inf
    Work.commit, stored.keep = or_die(Work.commit), or_die(stored.keep)
    run(args)
