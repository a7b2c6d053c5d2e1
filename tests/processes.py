"""Child processes that begin to work at once: a forkserver has imported torch and transformers once for all of them."""

import multiprocessing
import os
import signal
import socket
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["modeldiff.cli.main", "modeldiff.harvest.run", "modeldiff.crosscoder.run", "modeldiff.features.run"]
)
# Seconds after which a child counts as hanging.
DEADLINE = 120


def two(args: list[str], folder: Path, dies_at: dict[int, int]) -> list[tuple[int, list[str]]]:
    """Run `modeldiff ARGS` as rank 0 and rank 1 of one run, without torchrun; exit code and printed lines of each.

    dies_at: by rank, kill it with SIGKILL when it is about to keep its file of so many (counted from 1).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in (0, 1)]
    for log in logs:
        log.write_text("")
    children = [
        CONTEXT.Process(target=_as_rank, args=(rank, port, logs[rank], args, dies_at.get(rank))) for rank in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(DEADLINE)
        child.kill()  # nothing, unless it hangs
        child.join()
    return [(child.exitcode, log.read_text().splitlines()) for child, log in zip(children, logs, strict=True)]


def _as_rank(rank: int, port: int, log: Path, args: list[str], dies_at: int | None) -> None:
    import torch

    from modeldiff.cli.main import run
    from modeldiff.workspace.stage import Work

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    commit, names = Work.commit, []

    def commit_or_die(work: Work, temporary: Path, name: str) -> None:
        names.append(name)
        if len(names) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(work, temporary, name)

    Work.commit = commit_or_die
    run(args)
