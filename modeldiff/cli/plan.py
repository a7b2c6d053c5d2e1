"""`--plan`: what a stage would take, from a small run of it, as a table or as JSON."""

from __future__ import annotations

from typing import Any

import click

from modeldiff.console import echo_wrapped
from modeldiff.format import duration, flat, print_json, table


def plan_option() -> click.Option:
    return click.Option(
        ["--plan"], is_flag=True, help="Say what it would take (time, memory, disk), from a small run, and stop."
    )


def print_plan(data: dict[str, Any], *, as_json: bool) -> None:
    """Print what a stage's `plan` gives. What is not of a `rehearsal` is listed by its name."""
    from modeldiff.workspace.files import human_bytes

    if as_json:
        print_json(data)
        return
    known = data.pop("rehearsal", None)
    rows = flat(data)
    if known:
        time, sizes = known["time"], ", ".join(f"{size:,} {name}" for name, size in known["rehearsed"].items())
        rows += [[f"time of {what}", duration(seconds)] for what, seconds in time["parts"].items()]
        rows += [["time of the rest", duration(time["rest"])], ["time", duration(time["run"])]]
        rows += [["memory, so far", human_bytes(known["peak_memory"])], ["disk, so far", human_bytes(known["written"])]]
        rows += [["disk free", human_bytes(known["disk_free"])]]
    table("plan: nothing was kept", [("what", "left"), ("", "right")], rows)
    if known:
        echo_wrapped(
            f"From a run on {sizes}, on this machine as busy as it is: the rest and what is so far are of that run, "
            "the other times in proportion."
        )
