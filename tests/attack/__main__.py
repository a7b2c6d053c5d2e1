"""`python -m tests.attack [ATTACK...]`: the long form, a table of what was tried and what went wrong."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tests.attack import browser, damage, disk, environment, fuzz, judge, kills, terminal
from tests.attack.child import Outcome
from tests.attack.world import World, build

Tried = Iterator[tuple[Outcome, str | None]]
ATTACKS: dict[str, tuple[Callable[[World, Path, int, int], Tried], int]] = {
    "kills": (kills.attack, 300),
    "published": (damage.attack_published, 250),
    "unfinished": (damage.attack_unfinished, 250),
    "fuzz": (fuzz.attack, 10_000),
    "disk": (disk.attack, 100),
    "environment": (environment.attack, 0),
    "terminal": (terminal.attack, 0),
    "judge": (judge.attack, 0),
    "browser": (browser.attack, 0),
}
"""By name: the attack, and how often it is tried; 0: its own list of cases."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ATTACKS)))
@click.option("--count", type=int, help="How often each is tried, in place of its own number.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(names: tuple[str, ...], count: int | None, seed: int) -> None:
    """Attack the tool and print what went wrong. Exit code 1 if anything did."""
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        world = build(Path(folder) / "world")
        for name in names or ATTACKS:
            attack, usual = ATTACKS[name]
            began, ends, wrong = time.monotonic(), Counter[str](), 0
            for outcome, problem in attack(world, Path(folder), usual if count is None else count, seed):
                ends["killed" if outcome.code is None else f"exit code {outcome.code}"] += 1
                if problem:
                    wrong += 1
                    click.echo(f"  WRONG {outcome.what}: {problem}\n    modeldiff {' '.join(outcome.args)}")
            shown = ", ".join(f"{end} {times:,}" for end, times in sorted(ends.items()))
            click.echo(f"{name:12} {ends.total():6,} tried, {wrong} wrong ({shown}; {time.monotonic() - began:.0f} s)")
            found += wrong
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
