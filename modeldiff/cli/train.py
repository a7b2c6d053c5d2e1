"""`modeldiff train`: activations -> crosscoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import show_metrics, stage_command
from modeldiff.console import echo
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.errors import InputError

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact, Workspace


def _plan(settings: TrainSettings, workspace: Workspace, *, as_json: bool, plan: bool, processes: int | None) -> bool:
    if plan:
        from modeldiff.cli.train_plan import print_plan

        print_plan(settings, workspace, processes, as_json=as_json)
    elif processes is not None:
        raise InputError("--processes goes with --plan: to train with several, start them with torchrun")
    return plan


def _show(artifact: Artifact, **_: Any) -> None:
    show_metrics(artifact)
    if (curves := artifact.folder / "figures" / "training.png").exists():
        echo(f"curves: {curves}")
    # A partition in which nothing was found is not worth listing.
    there = [side for side in ("A", "B") if artifact.metrics["features"][side]]
    echo(f"next: modeldiff features{f' --exclusive {there[0]}' if there else ''}")


command = stage_command(
    "train",
    TrainSettings,
    "modeldiff.crosscoder.training.run",
    show=_show,
    instead=_plan,
    options=[
        click.Option(
            ["--plan"], is_flag=True, help="Say what it would take (memory, disk, time) and whether it fits, and stop."
        ),
        click.Option(
            ["--processes"],
            type=click.IntRange(min=1),
            metavar="N",
            help="For --plan: processes that would share the features, each on a device of its own, or on a machine of "
            "its own where it trains on the processor.  [default: 1, or those that torchrun started]",
        ),
    ],
    help="Activations -> a crosscoder: one dictionary with features of A only, shared ones, and ones of B only.\n\n"
    "An interrupted training continues from its last checkpoint with the same command, to the same weights.\n\n"
    "A dictionary too large for one GPU: `torchrun --nproc-per-node N -m modeldiff train ...`; each process holds a "
    "share of the features.",
    lines=[
        "modeldiff train --features 16384 --exclusive 0.05 --k 64 --steps 20000",
        "modeldiff train --features 131072 --k 200 --plan",
        "modeldiff train --features 16384 --audits 8",
        "modeldiff train --activations activations:2 --architecture standard --tokens 100000000",
    ],
)
