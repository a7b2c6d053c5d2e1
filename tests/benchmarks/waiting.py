"""What waiting threads cost: a training step alone on the machine, and beside another one and a busy process.

    python -m tests.benchmarks.waiting [--rounds 3]

For each way to wait the medians of the seconds of some steps: torch's default, what `modeldiff` sets, and threads that
sleep at once. Processes of their own, in turn; the rest of the machine has to be quiet.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import click

from tests.benchmarks.__main__ import machine
from tests.benchmarks.start import Sizes, make_start
from tests.benchmarks.step import ours_step

WAYS = {"torch's default": {}, "modeldiff": {"GOMP_SPINCOUNT": "3000"}, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
SIZES = {
    "small": (Sizes(width=160, features=1024, k=16, batch=1024), 60),
    "large": (Sizes(width=512, features=8192, k=64, batch=2048), 7),
}
_BUSY = "while True: pass"


def seconds(size: str) -> float:
    """Of the steps of this size, after two that are not counted."""
    sizes, steps = SIZES[size]
    start = make_start(sizes, log_every=10 * steps)
    step, batches = ours_step(start), start.batches()
    for _ in range(2):
        step(next(batches))
    begun = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    return time.perf_counter() - begun


def measured(size: str, way: dict[str, str], *, at_once: int) -> float:
    """The slowest of so many trainings at once; of several, beside a process that is busy."""
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-m", __spec__.name, "--one", size]
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY])] if at_once > 1 else []
    try:
        running = [
            subprocess.Popen(command, env=environment | way, stdout=subprocess.PIPE, text=True) for _ in range(at_once)
        ]
        return max(float(one.communicate()[0]) for one in running)
    finally:
        for one in busy:
            one.kill()
            one.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=SIZES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        click.echo(seconds(given.one))
        return
    click.echo(machine())
    for size, (_, steps) in SIZES.items():
        for at_once, where in ((1, "alone"), (2, "two beside a busy process")):
            found = {name: list[float]() for name in WAYS}
            for _ in range(given.rounds):
                for name, way in WAYS.items():
                    found[name].append(measured(size, way, at_once=at_once))
            times = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in found.items())
            click.echo(f"{steps} {size} steps, {where}: {times}")


if __name__ == "__main__":
    main()
