"""What `modeldiff diff --plan` says, against the diff itself, at three sizes of the bundled pair.

    python -m tests.benchmarks.plan [--sizes 1 2 3] [--json FILE]

Each plan and each diff is a process of its own, one after the other; the rest of the machine has to be quiet. A
line for every stage: seconds, and the peak of its memory. Steering and cause are planned as "at most", for a list as
long as it may be, so they are left out of both times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B
from modeldiff.workspace import Workspace
from tests.benchmarks.__main__ import machine

SIZES = {
    1: {"pairs": 50_000, "features": 512, "places": 1500},
    2: {"pairs": 100_000, "features": 2048, "places": 3000},
    3: {"pairs": 200_000, "features": 1024, "places": 6000},
}
_HELD = 0.25


def compared(size: dict[str, int], folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each stage, and one for all."""
    texts = folder / "texts.jsonl"
    write_probing_corpus(texts)
    options = [text for name, value in size.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "modeldiff", "--workspace", str(folder / "ws"), "diff", "--json", "--no-cause"]
    command += ["--model-a", str(MODEL_A), "--model-b", str(MODEL_B), "--texts", str(texts), "--no-steer", *options]
    plan = json.loads(subprocess.run([*command, "--plan"], check=True, stdout=subprocess.PIPE).stdout)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    made = {one.kind: one.manifest for one in Workspace(folder / "ws").artifacts()}
    stages = plan["rehearsal"]["stages"]
    for kind, planned in stages.items():
        yield {
            "stage": kind, "planned": planned["time"], "measured": made[kind].seconds,
            "planned_bytes": planned["peak_memory"], "measured_bytes": made[kind].peak_memory_bytes,
        }  # fmt: skip
    yield {
        "stage": "all",
        "planned": plan["rehearsal"]["time"]["run"],
        "measured": sum(one.seconds for one in made.values()),
        "planned_bytes": max(one["peak_memory"] for one in stages.values()),
        "measured_bytes": max(one.peak_memory_bytes for one in made.values()),
    }


def _line(one: dict[str, Any]) -> str:
    time, memory = one["planned"] / one["measured"], one["planned_bytes"] / one["measured_bytes"]
    far = "" if abs(time - 1) <= _HELD or one["measured"] < 1 else "  time missed"
    far += "" if abs(memory - 1) <= _HELD else "  memory missed"
    sizes = " ".join(f"{one[name] / 1e6:,.0f} MB" for name in ("planned_bytes", "measured_bytes"))
    return f"{one['stage']:14}{one['planned']:8.1f} s{one['measured']:8.1f} s{time:7.2f}   {sizes}{memory:7.2f}{far}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    click.echo(machine())
    found = []
    for number in given.sizes:
        click.echo(", ".join(f"{value:,} {name}" for name, value in SIZES[number].items()))
        with TemporaryDirectory() as folder:
            for one in compared(SIZES[number], Path(folder)):
                click.echo(_line(one))
                found.append({**SIZES[number], **one})
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
