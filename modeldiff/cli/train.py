"""`modeldiff train`: activations -> crosscoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modeldiff.cli.common import (
    Command,
    artifact_json,
    examples,
    make_settings,
    open_workspace,
    produce_options,
    settings_options,
)
from modeldiff.console import muted
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.format import flat, print_json, table


def _train(
    ctx: click.Context,
    name: str | None,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
    plan: bool,
    processes: int | None,
    **values: Any,
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    settings = make_settings(TrainSettings, values)
    if plan:
        from modeldiff.cli.train_plan import print_plan

        print_plan(settings, workspace, processes, as_json=as_json)
        return
    if processes is not None:
        raise click.UsageError("--processes goes with --plan: to train with several, start them with torchrun", ctx)
    from modeldiff.crosscoder.training.run import run

    artifact = run(settings, workspace, name=name, force=force)
    if muted():  # one process of the run speaks
        return
    if as_json:
        print_json(artifact_json(artifact))
        return
    table(artifact.ref, [("measured", "left"), ("value", "right")], flat(artifact.metrics))
    click.echo(f"curves: {artifact.folder / 'figures' / 'training.png'}")
    # A partition in which nothing was found is not worth listing.
    there = [side for side in ("A", "B") if artifact.metrics["features"][side]]
    click.echo(f"next: modeldiff features{f' --exclusive {there[0]}' if there else ''}")


command = Command(
    "train",
    params=[
        *settings_options(TrainSettings),
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
        *produce_options(),
    ],
    callback=click.pass_context(_train),
    help="Activations -> a crosscoder: one dictionary with features of A only, shared ones, and ones of B only.\n\n"
    "An interrupted training continues from its last checkpoint with the same command, to the same weights.\n\n"
    "A dictionary too large for one GPU: `torchrun --nproc-per-node N -m modeldiff train ...`; each process holds a "
    "share of the features.",
    epilog=examples(
        "modeldiff train --features 16384 --exclusive 0.05 --k 64 --steps 20000",
        "modeldiff train --features 131072 --k 200 --plan",
        "modeldiff train --features 16384 --audits 8",
        "modeldiff train --activations activations:2 --architecture standard --tokens 100000000",
    ),
)
