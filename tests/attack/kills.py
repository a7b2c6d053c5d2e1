"""SIGKILL at random moments of every stage: the same command goes on, and its result is that of an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from modeldiff.workspace import Workspace
from tests.attack.child import Outcome, call
from tests.attack.world import Stage, World, newest, take_away


def attack(world: World, folder: Path, count: int, seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """About `count` kills, as many of every stage: each of them, and each run after some of them to its end, with what
    is wrong with that."""
    rng = random.Random(seed)
    each = -(-count // len(world.stages))
    for stage in world.stages:
        yield from _of_stage(world, world.copy(folder / "kills"), stage, each, rng)


def _of_stage(
    world: World, workspace: Path, stage: Stage, kills: int, rng: random.Random
) -> Iterator[tuple[Outcome, str | None]]:
    args = ("--workspace", str(workspace), *stage.args)
    seconds = world.seconds[stage.kind]
    take_away(workspace, stage)
    while kills > 0:
        # Several kills of one run, as on a machine that is taken away again and again.
        for _ in range(min(kills, rng.randint(1, 4))):
            outcome = call(*args, seconds=rng.uniform(0.02, 0.9) * seconds)
            if outcome.code is not None:
                break
            kills -= 1
            yield outcome, None
        outcome = call(*args)
        outcome.what = f"SIGKILL, {stage.kind}"
        yield outcome, wrong_result(world, workspace, stage, outcome)
        seconds = min(seconds, max(0.3, outcome.seconds))
        take_away(workspace, stage)


def wrong_result(world: World, workspace: Path, stage: Stage, outcome: Outcome) -> str | None:
    """What is wrong with a run that nothing should have disturbed; None: nothing."""
    if outcome.fault or outcome.code:
        return outcome.fault or f"fails: {outcome.last_line}"
    made = newest(workspace, stage.kind)
    if problems := made.problems():
        return f"publishes what is damaged: {problems[0]}"
    if made.manifest.digest != world.digests[stage.kind]:
        return "another result than an undisturbed run"
    return "unfinished work is left" if Workspace(workspace).partials() else None
