"""Damage to files: a bit flipped, a file cut short, emptied, filled with zeros, swapped with another, a value edited.

In published artifacts (manifests and workspace.json included): the damage is named, and never served: the command that
made the artifact makes it again, the same to the bit. In unfinished work: the command goes on from what is sound, or
says in one line what is damaged, and its result is that of an undisturbed run.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.attack.child import Outcome, call
from tests.attack.kills import wrong_result
from tests.attack.world import Stage, World, newest, take_away

# Kept beside artifacts as a cache or a lock: damage in them must do no harm, but need not be named.
_UNNAMED = re.compile(r"\.lock$|digests\.json$")


def attack_published(world: World, folder: Path, count: int, seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """Damages to files of published artifacts; for each the outcome that shows what became of it."""
    rng = random.Random(seed)
    for _ in range(count):
        stage = rng.choice(world.stages)
        workspace = world.copy(folder / "published")
        artifact = newest(workspace, stage.kind)
        files = [path for path in artifact.folder.rglob("*") if path.is_file()]
        what = damage(rng.choice(files), files, rng)
        yield _after_published(world, workspace, stage, artifact.ref, what)


def _after_published(world: World, workspace: Path, stage: Stage, ref: str, what: str) -> tuple[Outcome, str | None]:
    """What became of an artifact of the stage."""
    verified = call("--workspace", str(workspace), "workspace", "verify", seconds=60)
    verified.what = f"{stage.kind}: {what}"
    if verified.fault or verified.code != 1:
        return verified, verified.fault or f"not named by verify: {what}"
    again = call("--workspace", str(workspace), *stage.args)
    again.what = verified.what
    if f"{ref} is up to date" in again.err:
        return again, f"served: {what}"
    return again, wrong_result(world, workspace, stage, again)


def attack_unfinished(world: World, folder: Path, count: int, seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """Damages to files of work that a kill interrupted."""
    rng = random.Random(seed)
    done = 0
    while done < count:
        stage = rng.choice(world.stages)
        workspace = world.copy(folder / "unfinished")
        take_away(workspace, stage)
        args = ("--workspace", str(workspace), *stage.args)
        call(*args, seconds=rng.uniform(0.3, 0.95) * world.seconds[stage.kind])
        files = [path for path in (workspace / ".partial").rglob("*") if path.is_file() and path.stat().st_size]
        files = [path for path in files if not _UNNAMED.search(path.name)]
        if not files:
            continue
        # One kill's remains serve for several damages.
        kept = folder / "interrupted"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(workspace, kept)
        for _ in range(min(3, count - done)):
            shutil.rmtree(workspace)
            shutil.copytree(kept, workspace)
            what = damage(rng.choice(files), files, rng)
            done += 1
            outcome = call(*args)
            outcome.what = f"unfinished {stage.kind}: {what}"
            if outcome.code == 1 and not outcome.fault:
                call("--workspace", str(workspace), "workspace", "clean", "--yes")
                outcome = call(*args)
                outcome.what = f"unfinished {stage.kind}: {what} (refused, then cleaned)"
            yield outcome, wrong_result(world, workspace, stage, outcome)


def damage(path: Path, others: list[Path], rng: random.Random) -> str:
    """Change a file in one of the ways; says which. Its content is another one afterwards."""
    before = path.read_bytes()
    if not before:
        path.write_bytes(b"x")
        return f"{path.name} written to"
    while True:
        way = rng.choice(("flipped", "cut", "zeroed", "edited", "swapped"))
        other = rng.choice(others)
        after = other.read_bytes() if way == "swapped" else _changed(way, before, rng)
        if after != before:
            path.write_bytes(after)
            if way == "swapped":
                other.write_bytes(before)
            return f"{path.name} {way}" + (f" with {other.name}" if way == "swapped" else "")


def _changed(way: str, content: bytes, rng: random.Random) -> bytes:
    if way == "cut":
        return content[: rng.randrange(len(content))]
    if way == "zeroed":
        return bytes(len(content))
    places = range(len(content)) if way == "flipped" else [match.start() for match in re.finditer(rb"[1-8]", content)]
    if not places:
        return content
    changed, at = bytearray(content), rng.choice(places)
    changed[at] = changed[at] ^ 1 << rng.randrange(8) if way == "flipped" else changed[at] + 1
    return bytes(changed)
