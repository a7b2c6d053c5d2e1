"""A disk that fills, or a quota, at a write of every stage: one line, and the same command finishes once there is room.

A limit on the size of files stands for both: the system refuses the write in the middle of a file with an error, as a
full disk does.
"""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.attack.child import Outcome, call
from tests.attack.kills import wrong_result
from tests.attack.world import World, take_away


def limit(most_bytes: int) -> None:
    """From now on no file of this process grows beyond this size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def attack(world: World, folder: Path, count: int, seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """Limits drawn so that small and large files of each stage meet them; for each the run under it, or after it."""
    rng = random.Random(seed)
    for number in range(count):
        stage = world.stages[number % len(world.stages)]
        workspace = world.copy(folder / "disk")
        take_away(workspace, stage)
        largest = max(path.stat().st_size for path in (world.workspace / stage.kind).rglob("*") if path.is_file())
        most = int(2 ** rng.uniform(9, max(10, largest.bit_length())))
        args = ("--workspace", str(workspace), *stage.args)
        outcome = call(*args, before=partial(limit, most))
        outcome.what = f"{stage.kind}, files of at most {most:,} bytes"
        if outcome.fault or outcome.code == 2:
            yield outcome, outcome.fault or f"blames the input: {outcome.last_line}"
            continue
        again = call(*args)
        again.what = outcome.what
        yield outcome, wrong_result(world, workspace, stage, again)
