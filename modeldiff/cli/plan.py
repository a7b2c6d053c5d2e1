"""`--plan`: what a stage would take, from a small run of it, as a table or as JSON."""

from __future__ import annotations

from typing import Any

import click

from modeldiff.console import echo_wrapped
from modeldiff.errors import MachineError
from modeldiff.format import duration, flat, print_json, table
from modeldiff.workspace.files import human_bytes

# Running processes by core, from which on times are of little use to somebody who will be alone.
_BUSY = 0.5
_SIZES = {"memory": "peak_memory", "disk": "written"}


def plan_option() -> click.Option:
    return click.Option(
        ["--plan"], is_flag=True, help="Say what it would take (time, memory, disk), from a small run, and stop."
    )


def print_plan(data: dict[str, Any], *, as_json: bool) -> None:
    """Print what a stage's `plan` gives; what is not of a `rehearsal` is listed by its name. Raises MachineError: there
    are `problems`, it would not fit."""
    problems = data.get("problems", [])
    if as_json:
        print_json(data)
    else:
        _print(data)
    if problems:
        raise MachineError("it does not fit: " + "; and ".join(problems))


def _print(data: dict[str, Any]) -> None:
    data.pop("problems", None)
    known, at_most = data.pop("rehearsal", None), data.pop("at_most", {})
    rows = flat(data)
    if known and len(known["stages"]) < 2:  # none: what is asked for is there already
        rows += [[f"time of {what}", duration(seconds)] for what, seconds in known["time"]["parts"].items()]
        rows += [["time of the rest", duration(known["time"]["rest"])], ["time", duration(known["time"]["run"])]]
        rows += [[what, human_bytes(size)] for what, size in _sizes(known)]
    table("plan: nothing was kept", [("what", "left"), ("", "right")], rows)
    if known and len(known["stages"]) > 1:
        _print_stages(known, at_most)
    if known:
        sizes = ", ".join(f"{size:,} {name}" for name, size in known["rehearsed"].items())
        echo_wrapped(f"From a run on {sizes} on this machine; the times of its parts are in proportion.")
        if known["load"] > _BUSY:
            echo_wrapped(f"{known['load']:.1f} processes were running already for each core: alone it is faster.")


def _sizes(known: dict[str, Any]) -> list[tuple[str, int]]:
    sizes = [(what, one[key]) for one in known["stages"].values() for what, key in _SIZES.items()]
    return [*sizes, ("disk free", known["disk_free"])]


def _print_stages(known: dict[str, Any], at_most: dict[str, float]) -> None:
    stages = known["stages"].values()
    rows = [
        [kind, duration(one["time"]), human_bytes(one["peak_memory"]), human_bytes(one["written"])]
        for kind, one in known["stages"].items()
    ]
    rows += [[f"{name} of what is found", f"at most {duration(seconds)}", "", ""] for name, seconds in at_most.items()]
    most, written = max(one["peak_memory"] for one in stages), sum(one["written"] for one in stages)
    rows += [["all", duration(known["time"]["run"]), human_bytes(most), human_bytes(written)]]
    table("stages", [("makes", "left"), ("time", "right"), ("memory", "right"), ("disk", "right")], rows)
    echo_wrapped(f"{human_bytes(known['disk_free'])} of disk are free.")
